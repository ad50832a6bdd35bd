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
import os
import platform
import shutil
import struct
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xxhash

from llamax.files import InputError, naming, read_json, replacing, require_same_origin

_HEADER = b"MMIDIDX\x00\x00"
_DTYPE_CODES = {np.dtype(np.uint8): 1, np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
FORMAT = 2  # raised when the same arguments would give other bytes
PACKAGES = ("gigatoken", "numpy", "sentencepiece")  # whose versions a manifest records
_COPY_BYTES = 8 << 20


def token_dtype(vocab_size):
    """uint16 where every id fits, as Megatron chooses it, else int32."""
    return np.dtype(np.uint16) if vocab_size < 65500 else np.dtype(np.int32)


def mapped_index(prefix, sequences, documents):
    """(tokens of each sequence, first sequence of each document and the end) of PREFIX.idx, mapped, not read."""
    start = len(_HEADER) + struct.calcsize("<QBQQ")
    lengths = np.memmap(f"{prefix}.idx", np.int32, "r", start, (sequences,)) if sequences else np.zeros(0, np.int32)
    return lengths, np.memmap(f"{prefix}.idx", np.int64, "r", start + 12 * sequences, (documents + 1,))


class _BinFile:
    """A growing .bin and its digest."""

    def __init__(self, path, dtype):
        self.file, self.path, self.dtype = open(path, "wb"), path, np.dtype(dtype)
        self.digest = xxhash.xxh3_128()  # at disk speed, where BLAKE2b takes a second for each GB

    def add(self, values):
        data = np.ascontiguousarray(values, self.dtype).data
        with naming(self.path):
            self.file.write(data)
        self.digest.update(data)

    def close(self):
        with naming(self.path):
            self.file.close()


class DatasetWriter:
    """Collects sequences; made by `writing_dataset`. Counts `documents`, `sequences`, `tokens`, `loss_tokens`.

    Everything goes to disk as it comes: a corpus of a thousand million pairs has an index of 20 GB.
    """

    def __init__(self, ids_path, loss_path, vocab_size, also):
        self.ids = _BinFile(ids_path, token_dtype(vocab_size))
        self.loss, self.loss_path = None, loss_path  # made when the first token without loss comes
        self.vocab_size = vocab_size
        self.documents, self.sequences, self.tokens, self.loss_tokens = 0, 0, 0, 0
        # For the .idx, which begins with how many there are: they vanish with this process, however it ends.
        self.lengths, self.document_ends = (tempfile.TemporaryFile(dir=Path(ids_path).parent) for _ in range(2))
        self.also = {name: open(path, "wb") for name, path in also.items()}

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
        loss_tokens = len(ids) if loss is None else int(np.sum(loss))
        if loss_tokens < len(ids) and self.loss is None:
            self.loss = _BinFile(self.loss_path, np.uint8)
            for at in range(0, self.tokens, _COPY_BYTES):
                self.loss.add(np.ones(min(_COPY_BYTES, self.tokens - at), np.uint8))
        self.ids.add(ids)
        if self.loss is not None:
            self.loss.add(np.ones(len(ids), np.uint8) if loss is None else loss)
        ends = self.sequences + np.cumsum(sequences_per_document, dtype=np.int64)
        with naming(self.ids.path):
            self.lengths.write(np.ascontiguousarray(sequence_lengths, np.int32).data)
            self.document_ends.write(ends.data)
        self.documents += len(sequences_per_document)
        self.sequences += len(sequence_lengths)
        self.tokens += len(ids)
        self.loss_tokens += loss_tokens

    def add_also(self, name, data):
        """Append bytes to one of the further files."""
        with naming(self.also[name].name):
            self.also[name].write(data)

    def finish(self, idx_path, loss_idx_path):
        """Write the index files and close all."""
        self.ids.close()
        self._write_index(idx_path, self.ids.dtype)
        if self.loss is not None:
            self.loss.close()
            self._write_index(loss_idx_path, self.loss.dtype)
        for file in self.also.values():
            with naming(file.name):
                file.close()

    def _write_index(self, path, dtype):
        with naming(path), open(path, "wb") as file:
            file.write(_HEADER + struct.pack("<QBQQ", 1, _DTYPE_CODES[dtype], self.sequences, self.documents + 1))
            self.lengths.seek(0)
            shutil.copyfileobj(self.lengths, file, _COPY_BYTES)
            self.lengths.seek(0)
            offset = 0
            while data := self.lengths.read(_COPY_BYTES):
                ends = np.cumsum(np.frombuffer(data, np.int32), dtype=np.int64) * dtype.itemsize + offset
                file.write(np.concatenate([[offset], ends[:-1]]).astype(np.int64).data)
                offset = int(ends[-1])
            file.write(np.zeros(1, np.int64).data)
            self.document_ends.seek(0)
            shutil.copyfileobj(self.document_ends, file, _COPY_BYTES)

    def close(self):
        """Close what is still open. Closing flushes, and on a full disk fails again: the first error is shown."""
        for file in (self.ids, self.loss, self.lengths, self.document_ends, *self.also.values()):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


@contextlib.contextmanager
def writing_dataset(prefix, vocab_size, also=()):
    """Yield (writer, manifest); on a clean exit the dataset `prefix` appears whole, manifest last.

    The caller fills `manifest`, a dict; counts, format and versions are added here. `also` names further files
    PREFIX.NAME of the dataset, for `writer.add_also`.
    """
    also = list(also)
    loss = [f"{prefix}_loss.bin", f"{prefix}_loss.idx"]
    finals = [f"{prefix}.bin", f"{prefix}.idx", *loss, *(f"{prefix}.{name}" for name in also), f"{prefix}.json"]
    with replacing(*finals) as (bin_path, idx_path, loss_bin, loss_idx, *also_paths, json_path):
        writer, manifest = DatasetWriter(bin_path, loss_bin, vocab_size, dict(zip(also, also_paths, strict=True))), {}
        try:
            yield writer, manifest
            writer.finish(idx_path, loss_idx)
        finally:
            writer.close()
        if writer.loss is None:
            for path in loss:  # left by a run that was killed
                Path(path).unlink(missing_ok=True)
        manifest.update(
            format=FORMAT,
            documents=writer.documents,
            sequences=writer.sequences,
            tokens=writer.tokens,
            loss_tokens=writer.loss_tokens,
            dtype=str(writer.ids.dtype),
            bin_bytes=writer.tokens * writer.ids.dtype.itemsize,
            xxh3_128=writer.ids.digest.hexdigest(),
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


def read_manifest(prefix, flag="--data-path"):
    """The manifest of a complete dataset; InputError if there is none or if its `.bin` is not the one it tells of."""
    if not Path(f"{prefix}.json").is_file():
        raise InputError(f"{flag} {prefix}: no {prefix}.json, so no complete dataset; run its preprocessing")
    manifest = read_json(f"{prefix}.json", flag)
    remedy = f"remove {prefix}* and preprocess again"
    for name in ("bin", "idx"):
        if not Path(f"{prefix}.{name}").is_file():
            raise InputError(f"{flag} {prefix}.{name}: missing, though {prefix}.json is there; {remedy}")
    try:
        expected = manifest["bin_bytes"], manifest["xxh3_128"]
    except (KeyError, TypeError):
        raise InputError(f"{flag} {prefix}.json: not a dataset's manifest; {remedy}") from None
    with open(f"{prefix}.bin", "rb") as file:
        found = os.path.getsize(file.name), hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    if found != expected:
        raise InputError(
            f"{flag} {prefix}.bin: {found[0]} bytes, xxh3_128 {found[1]}; its manifest expects {expected[0]} bytes, "
            f"{expected[1]}; {remedy}"
        )
    return manifest
