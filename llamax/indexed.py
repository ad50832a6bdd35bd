"""Megatron indexed datasets (`.bin`, `.idx`) with their loss mask and manifest, written whole or not at all.

The layout is that of megatron.core.datasets.indexed_dataset, written here without torch and without going through
IndexedDatasetBuilder, which wraps ids that do not fit uint16 and writes in place:

    .idx   b"MMIDIDX\\0\\0", version u64 = 1, dtype code u8, sequences u64, documents u64,
           length of each sequence i32, byte offset of each i64, first sequence of each document and the end i64
    .bin   the ids of all sequences, one after the other

NAME.bin/.idx hold the ids. NAME_loss.bin/.idx, only where some token carries no loss, hold one uint8 a token, 0 or 1,
in the same sequences. NAME.json, the manifest, is renamed last: where it is, the dataset is complete.
"""

import contextlib
import hashlib
import json
import platform
import struct
from importlib.metadata import version
from pathlib import Path

import numpy as np

from llamax.files import InputError, fingerprint, naming, read_json, replacing, require_same_origin

_HEADER = b"MMIDIDX\x00\x00"
_DTYPE_CODES = {np.dtype(np.uint8): 1, np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
FORMAT = 1  # raised when the same arguments would give other bytes
PACKAGES = ("gigatoken", "numpy", "sentencepiece")  # whose versions a manifest records


def token_dtype(vocab_size):
    """uint16 where every id fits, as Megatron chooses it, else int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


class _IndexedFile:
    """One growing .bin with what its .idx will need. Lengths are kept as arrays: 4 bytes a sequence."""

    def __init__(self, path, dtype):
        self.file, self.path, self.dtype = open(path, "wb"), path, np.dtype(dtype)
        self.lengths = []
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, values, lengths):
        data = np.ascontiguousarray(values, self.dtype).data
        with naming(self.path):
            self.file.write(data)
        self.digest.update(data)
        self.lengths.append(np.asarray(lengths, np.int32))

    def finish(self, index_path, documents):
        with naming(self.path):
            self.file.close()
        lengths = np.concatenate([np.zeros(0, np.int32), *self.lengths])
        offsets = np.zeros(len(lengths), np.int64)
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        with naming(index_path), open(index_path, "wb") as file:
            file.write(_HEADER + struct.pack("<QBQQ", 1, _DTYPE_CODES[self.dtype], len(lengths), len(documents)))
            for array in (lengths, offsets * self.dtype.itemsize, documents):
                file.write(array.data)


class DatasetWriter:
    """Collects sequences; made by `writing_dataset`. Counts `documents`, `sequences`, `tokens`, `loss_tokens`."""

    def __init__(self, ids_path, loss_path, vocab_size):
        self.ids = _IndexedFile(ids_path, token_dtype(vocab_size))
        self.loss = _IndexedFile(loss_path, np.uint8)
        self.vocab_size = vocab_size
        self.documents, self.sequences, self.tokens, self.loss_tokens = 0, 0, 0, 0
        self.document_ends = []

    def add(self, ids, sequence_lengths, sequences_per_document, loss=None):
        """Append documents.

        Args:
            ids: the ids of all sequences, joined.
            sequence_lengths: tokens in each sequence; their sum is len(ids).
            sequences_per_document: sequences in each document; their sum is len(sequence_lengths).
            loss: one 0 or 1 a token; None means 1 for all.
        """
        if len(ids) == 0:
            return
        if ids.max() >= self.vocab_size:
            raise ValueError(f"id {ids.max()} is not below the vocabulary size {self.vocab_size}")
        self.ids.add(ids, sequence_lengths)
        self.loss.add(np.ones(len(ids), np.uint8) if loss is None else loss, sequence_lengths)
        self.document_ends.append(self.sequences + np.cumsum(sequences_per_document, dtype=np.int64))
        self.documents += len(sequences_per_document)
        self.sequences += len(sequence_lengths)
        self.tokens += len(ids)
        self.loss_tokens += len(ids) if loss is None else int(np.sum(loss))


@contextlib.contextmanager
def writing_dataset(prefix, vocab_size):
    """Yield (writer, manifest); on a clean exit the dataset `prefix` appears whole, manifest last.

    The caller fills `manifest`, a dict; counts, format and versions are added here.
    """
    finals = [f"{prefix}.bin", f"{prefix}.idx", f"{prefix}_loss.bin", f"{prefix}_loss.idx", f"{prefix}.json"]
    with replacing(*finals) as (bin_path, idx_path, loss_bin, loss_idx, json_path):
        writer, manifest = DatasetWriter(bin_path, loss_bin, vocab_size), {}
        try:
            yield writer, manifest
            documents = np.concatenate([np.zeros(1, np.int64), *writer.document_ends])
            writer.ids.finish(idx_path, documents)
            writer.loss.finish(loss_idx, documents)
        finally:
            # Closing flushes, and on a full disk fails again: the first error is the one to show.
            for file in (writer.ids.file, writer.loss.file):
                with contextlib.suppress(OSError):
                    file.close()
        if writer.loss_tokens == writer.tokens:
            for path in (loss_bin, loss_idx, *map(Path, finals[2:4])):  # the last two: left by a run that was killed
                path.unlink(missing_ok=True)
        manifest.update(
            format=FORMAT,
            documents=writer.documents,
            sequences=writer.sequences,
            tokens=writer.tokens,
            loss_tokens=writer.loss_tokens,
            dtype=str(writer.ids.dtype),
            bin_bytes=writer.tokens * writer.ids.dtype.itemsize,
            blake2b=writer.ids.digest.hexdigest(),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        )
        with naming(json_path):
            json_path.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def already_done(prefix, arguments, sources):
    """True if `prefix` is complete and was made from the same arguments and source files; False if it is not there.

    Raises InputError if it is there but was made otherwise: an existing output is never overwritten.
    """
    path = Path(f"{prefix}.json")
    if not path.exists():
        return False
    require_same_origin(
        read_json(path, "--output-prefix"),
        {"format": FORMAT, "sources": sources, **arguments},
        f"--output-prefix {prefix}",
        f"choose another prefix or remove {prefix}*",
    )
    return True


def read_manifest(prefix):
    """The manifest of a complete dataset; InputError if there is none or if its `.bin` is not the one it tells of."""
    if not Path(f"{prefix}.json").is_file():
        raise InputError(f"--data-path {prefix}: no {prefix}.json, so no complete dataset; run its preprocessing")
    manifest = read_json(f"{prefix}.json", "--data-path")
    remedy = f"remove {prefix}* and preprocess again"
    for name in ("bin", "idx"):
        if not Path(f"{prefix}.{name}").is_file():
            raise InputError(f"--data-path {prefix}.{name}: missing, though {prefix}.json is there; {remedy}")
    try:
        expected = manifest["bin_bytes"], manifest["blake2b"]
    except (KeyError, TypeError):
        raise InputError(f"--data-path {prefix}.json: not a dataset's manifest; {remedy}") from None
    found = fingerprint(f"{prefix}.bin")
    if (found["size"], found["blake2b"]) != expected:
        raise InputError(
            f"--data-path {prefix}.bin: {found['size']} bytes, BLAKE2b {found['blake2b']}; its manifest expects "
            f"{expected[0]} bytes, {expected[1]}; {remedy}"
        )
    return manifest
