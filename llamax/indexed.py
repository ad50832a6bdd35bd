"""Megatron indexed datasets (`.bin`, `.idx`) with their loss mask and manifest, written whole or not at all.

The layout is that of megatron.core.datasets.indexed_dataset, written here without torch and without going through
IndexedDatasetBuilder, which wraps ids that do not fit uint16 and writes in place:

    .idx   b"MMIDIDX\\0\\0", version u64 = 1, dtype code u8, sequences u64, documents u64,
           length of each sequence i32, byte offset of each i64, first sequence of each document and the end i64
    .bin   the ids of all sequences, one after the other

NAME.bin/.idx hold the ids. NAME_loss.bin/.idx, only where some token carries no loss, hold one uint8 a token, 0 or 1,
in the same sequences. NAME.tags, only where there are several, holds one little-endian uint16 a sequence: which of the
manifest's "tags", [[kind, language or language pair], …] in alphabetical order, it is of. NAME.json, the manifest, is
renamed last: where it is, the dataset is complete. It has the size and digest of each of these files.
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

from llamax.files import InputError, naming, read_json, replacing, require_same_origin, write_json

_HEADER = b"MMIDIDX\x00\x00"
_DTYPE_CODES = {np.dtype(np.uint8): 1, np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
FORMAT = 3  # raised when the same arguments would give other bytes
OPTIONAL = ("_loss.bin", "_loss.idx", ".tags")  # files that not every dataset has
TAG = np.dtype("<u2")
MOST_TAGS = 65_535
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


class _File:
    """A growing file, its size and its digest."""

    def __init__(self, path):
        self.file, self.path, self.size = open(path, "wb"), path, 0
        self.digest = xxhash.xxh3_128()  # at disk speed, where BLAKE2b takes a second for each GB

    def write(self, data):
        with naming(self.path):
            self.file.write(data)
        self.digest.update(data)
        self.size += memoryview(data).nbytes

    def close(self):
        with naming(self.path):
            self.file.close()

    @property
    def stamp(self):
        """[bytes, xxh3_128] as a manifest has them."""
        return [self.size, self.digest.hexdigest()]


class DatasetWriter:
    """Collects sequences; made by `writing_dataset`. Counts `documents`, `sequences`, `tokens`, `loss_tokens`.

    Everything goes to disk as it comes: a corpus of a thousand million pairs has an index of 20 GB.
    """

    def __init__(self, prefix, ids_path, loss_path, vocab_size, also):
        self.prefix, self.folder = prefix, Path(ids_path).parent
        self.ids, self.dtype = _File(ids_path), token_dtype(vocab_size)
        self.loss, self.loss_path = None, loss_path  # made when the first token without loss comes
        self.vocab_size = vocab_size
        self.documents, self.sequences, self.tokens, self.loss_tokens = 0, 0, 0, 0
        # For the .idx, which begins with how many there are: they vanish with this process, however it ends.
        self.lengths, self.document_ends = (tempfile.TemporaryFile(dir=self.folder) for _ in range(2))
        # For the .tags, whose numbers are known when all tags are: in order of appearance until then.
        self.numbers, self.tags = {}, None  # the file is made when the second tag comes
        self.also = {name: open(path, "wb") for name, path in also.items()}

    def add(self, ids, sequence_lengths, sequences_per_document, loss=None, tags=None):
        """Append documents.

        Args:
            ids: the ids of all sequences, joined.
            sequence_lengths: tokens in each sequence; their sum is len(ids).
            sequences_per_document: sequences in each document; their sum is len(sequence_lengths).
            loss: one 0 or 1 a token; None means 1 for all.
            tags: ([(kind, language or language pair)], the number of each sequence among them), for all calls or none.
        """
        if len(ids) == 0:
            return
        if ids.max() >= self.vocab_size:
            raise ValueError(f"id {ids.max()} is not below the vocabulary size {self.vocab_size}")
        loss_tokens = len(ids) if loss is None else int(np.sum(loss))
        if loss_tokens < len(ids) and self.loss is None:
            self.loss = _File(self.loss_path)
            for at in range(0, self.tokens, _COPY_BYTES):
                self.loss.write(np.ones(min(_COPY_BYTES, self.tokens - at), np.uint8).data)
        self.ids.write(np.ascontiguousarray(ids, self.dtype).data)
        if self.loss is not None:
            loss = np.ones(len(ids), np.uint8) if loss is None else loss
            self.loss.write(np.ascontiguousarray(loss, np.uint8).data)
        if tags is not None:
            self._add_tags(*tags)
        ends = self.sequences + np.cumsum(sequences_per_document, dtype=np.int64)
        with naming(self.ids.path):
            self.lengths.write(np.ascontiguousarray(sequence_lengths, np.int32).data)
            self.document_ends.write(ends.data)
        self.documents += len(sequences_per_document)
        self.sequences += len(sequence_lengths)
        self.tokens += len(ids)
        self.loss_tokens += loss_tokens

    def _add_tags(self, names, numbers):
        table = np.zeros(len(names), TAG)
        for i in np.flatnonzero(np.bincount(numbers, minlength=len(names))).tolist():
            number = self.numbers.setdefault(names[i], len(self.numbers))
            if number >= MOST_TAGS:
                raise InputError(
                    f"{self.prefix}.tags: cannot number more than {MOST_TAGS:,} languages and language pairs; make "
                    "several datasets of them"
                )
            table[i] = number
        with naming(self.ids.path):
            if self.tags is None and len(self.numbers) > 1:
                self.tags = tempfile.TemporaryFile(dir=self.folder)
                for at in range(0, self.sequences, _COPY_BYTES):
                    self.tags.write(np.zeros(min(_COPY_BYTES, self.sequences - at), TAG).data)
            if self.tags is not None:
                self.tags.write(table[numbers].data)

    def add_also(self, name, data):
        """Append bytes to one of the further files."""
        with naming(self.also[name].name):
            self.also[name].write(data)

    def finish(self, idx_path, loss_idx_path, tags_path):
        """Write the index files and the tags, and close all. Returns {what follows the prefix: [bytes, xxh3_128]} of
        all files that training reads, but for the .bin."""
        self.ids.close()
        files = {".idx": self._write_index(idx_path, self.dtype)}
        if self.loss is not None:
            self.loss.close()
            files |= {"_loss.bin": self.loss.stamp, "_loss.idx": self._write_index(loss_idx_path, np.dtype(np.uint8))}
        if self.tags is not None:
            files[".tags"] = self._write_tags(tags_path)
        for file in self.also.values():
            with naming(file.name):
                file.close()
        return files

    def _write_index(self, path, dtype):
        file = _File(path)
        with naming(path), contextlib.closing(file):
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
        return file.stamp

    def _write_tags(self, path):
        """The tags, renumbered in alphabetical order: no number depends on which sequences came first."""
        final = np.zeros(len(self.numbers), TAG)
        final[[self.numbers[tag] for tag in sorted(self.numbers)]] = np.arange(len(self.numbers))
        file = _File(path)
        with naming(path), contextlib.closing(file):
            self.tags.seek(0)
            while data := self.tags.read(_COPY_BYTES):
                file.write(final[np.frombuffer(data, TAG)].data)
        return file.stamp

    def close(self):
        """Close what is still open. Closing flushes, and on a full disk fails again: the first error is shown."""
        for file in (self.ids, self.loss, self.lengths, self.document_ends, self.tags, *self.also.values()):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


@contextlib.contextmanager
def writing_dataset(prefix, vocab_size, also=()):
    """Yield (writer, manifest); on a clean exit the dataset `prefix` appears whole, manifest last.

    The caller fills `manifest`, a dict; counts, format and versions are added here. `also` names further files
    PREFIX.NAME of the dataset, for `writer.add_also`.
    """
    names = [".bin", ".idx", *OPTIONAL, *(f".{name}" for name in also), ".json"]
    with replacing(*(f"{prefix}{name}" for name in names)) as partial:
        path = dict(zip(names, partial, strict=True))
        also = {name: path[f".{name}"] for name in also}
        writer, manifest = DatasetWriter(prefix, path[".bin"], path["_loss.bin"], vocab_size, also), {}
        try:
            yield writer, manifest
            files = writer.finish(path[".idx"], path["_loss.idx"], path[".tags"])
        finally:
            writer.close()
        remove_left_over(prefix, files)
        manifest.update(
            format=FORMAT,
            documents=writer.documents,
            sequences=writer.sequences,
            tokens=writer.tokens,
            loss_tokens=writer.loss_tokens,
            dtype=str(writer.dtype),
            bin_bytes=writer.ids.size,
            xxh3_128=writer.ids.digest.hexdigest(),
            files=files,
            tags=sorted(map(list, writer.numbers)),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        )
        with naming(path[".json"]):
            path[".json"].write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def remove_left_over(prefix, files):
    """Remove the files of a run that was killed that a new dataset does not have."""
    for name in OPTIONAL:
        if name not in files:
            Path(f"{prefix}{name}").unlink(missing_ok=True)


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


def tag_names(manifest):
    """[(kind, language or language pair)] that the numbers of a dataset's .tags stand for; where there is one, there is
    no such file. A dataset whose sequences have no language is of its kind alone."""
    return [tuple(tag) for tag in manifest["tags"]] or [(manifest.get("kind", ""), "")]


class Verified:
    """Files that were found to be what their manifest says, {path: [bytes, mtime in ns, inode, digest]} in a JSON file:
    as long as they are not touched they need not be read again, which for terabytes takes hours."""

    def __init__(self, path):
        self.path = path
        try:
            found = json.loads(Path(path).read_bytes())
        except (OSError, ValueError):  # none yet, or damaged: then all is read again
            found = None
        self.found = found if isinstance(found, dict) else {}

    @staticmethod
    def _entry(stat, digest):
        return [stat.st_size, stat.st_mtime_ns, stat.st_ino, digest]

    def holds(self, path, stat, digest):
        return self.found.get(os.path.realpath(path)) == self._entry(stat, digest)

    def add(self, path, stat, digest):
        """Remember a file whose digest was found; at once, so that a job that is killed need not begin anew."""
        self.found[os.path.realpath(path)] = self._entry(stat, digest)
        write_json(self.path, self.found)


def read_manifest(prefix, flag="--data-path", verified=None):
    """The manifest of a complete dataset; InputError if there is none or if a file is not the one it tells of. Files
    that `verified`, a Verified, holds are not read."""
    if not Path(f"{prefix}.json").is_file():
        raise InputError(f"{flag} {prefix}: no {prefix}.json, so no complete dataset; run its preprocessing")
    manifest = read_json(f"{prefix}.json", flag)
    remedy = f"remove {prefix}* and preprocess again"
    try:
        form = manifest["format"]
        files = {".bin": [manifest["bin_bytes"], manifest["xxh3_128"]], **manifest.get("files", {})}
    except (KeyError, TypeError):
        raise InputError(f"{flag} {prefix}.json: not a dataset's manifest; {remedy}") from None
    if form != FORMAT:
        raise InputError(f"{flag} {prefix}.json: format {form!r}, expected {FORMAT}; {remedy}")
    for name in files:
        if not Path(f"{prefix}{name}").is_file():
            raise InputError(f"{flag} {prefix}{name}: missing, though {prefix}.json is there; {remedy}")
    for name in OPTIONAL:
        if name not in files and Path(f"{prefix}{name}").exists():
            raise InputError(f"{flag} {prefix}{name}: not a file of the dataset that {prefix}.json tells of; remove it")
    for name, (size, digest) in files.items():
        with open(f"{prefix}{name}", "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_size == size and verified is not None and verified.holds(file.name, stat, digest):
                continue
            found = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() if stat.st_size == size else "not computed"
        if found != digest:
            raise InputError(
                f"{flag} {prefix}{name}: {stat.st_size} bytes, xxh3_128 {found}; its manifest expects {size} bytes, "
                f"{digest}; {remedy}"
            )
        if verified is not None:
            verified.add(file.name, stat, digest)
    return manifest
