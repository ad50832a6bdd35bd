"""Corpora in whatever form they come, cut into pieces that shards and workers share.

A source is one file (or two aligned ones, or a dataset of the `datasets` library); a corpus is a list of sources in
the order given. A shard is a range of the corpus: files of plain lines are cut at multiples of PIECE_BYTES, so that a
large file serves many shards; what cannot be read from its middle (compressed, Parquet, `datasets`) goes whole to the
shard its beginning falls into. A record belongs to the piece in which it starts. The shards in order are the corpus
in order, however many there are.

    .jsonl      an object a line                       .tsv   fields separated by tabs, named by --columns
    .parquet    a table                                FOLDER or hf:NAME[:CONFIG[:SPLIT]]   a `datasets` dataset
    any other   a text a line                          each of the first three and the last also .gz, .zst, .xz
"""

import dataclasses
import functools
import gzip
import itertools
import lzma
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from backports import zstd  # in the standard library from Python 3.14 on

from llamax.files import InputError, extra
from llamax.records import Block, Unusable, json_object, language_code

PIECE_BYTES = 2 << 20  # of plain lines: what a worker does at a time, and where shards are cut
PIECE_ROWS = 1000  # of tables
HUB = "hf:"  # before the name of a dataset on the Hugging Face hub


@dataclass(frozen=True)
class Source:
    """One part of a corpus. `path` is as the user gave it and as rejects name it."""

    path: str
    form: str  # "lines", "stream" (compressed lines), "parquet" or "dataset"
    kind: str  # of a line: "jsonl", "tsv", "text" or "aligned"; of a table: "row"
    size: int  # bytes; of a dataset, whose size nobody knows, 1
    fields: dict  # what flags or the path say of every record, for instance {"lang": "fr"}
    names: dict  # {"text": what this corpus calls it}; parts of nested fields are joined by dots
    columns: tuple = ()  # of a .tsv
    header: bytes | None = None  # the first line of a .tsv, if it names the columns
    target: str | None = None  # the other side, line-aligned, of Moses pairs


def find_sources(inputs, fields, names=None, columns=None, pattern=None, targets=None):
    """The Sources of a corpus.

    Args:
        inputs: paths as given by --input, or by --src.
        fields: {name: value} that holds for all records.
        names: {"text": what the records call it}, where it is not the same.
        columns: what the columns of a .tsv are called; None: its first line says so.
        pattern: regular expression whose named groups add to `fields` what each path says.
        targets: paths as given by --tgt, one for each of --src.

    Raises InputError for what cannot be found or opened.
    """
    sources = []
    for i, path in enumerate(inputs):
        found = dict(fields)
        if pattern:
            match = re.search(pattern, path)
            if not match:
                raise InputError(f"--lang-pattern {pattern!r}: not found in {path}; correct it or leave the file out")
            found |= {name: language_code(value) for name, value in match.groupdict().items() if value is not None}
        form, kind = _form(path)
        header, of_this = None, tuple(columns or ())
        if kind == "tsv" and columns is None:
            header = next((lines[0] for lines, _ in _line_blocks(path)), b"")
            of_this = tuple(header.decode("utf-8", errors="replace").split("\t"))
        if targets:
            kind = "aligned"
            if _compressed(targets[i]) or not Path(targets[i]).is_file():
                form = _form(targets[i])[0]
        size = 1 if form == "dataset" else os.path.getsize(path)
        target = targets[i] if targets else None
        sources.append(Source(path, form, kind, size, found, dict(names or {}), of_this, header, target))
    return sources


def _compressed(path):
    return Path(path).suffix in _OPENERS


def _form(path):
    """(form, kind) of a path, or an InputError if nothing is there."""
    if path.startswith(HUB) or Path(path).is_dir():
        return "dataset", "row"
    if not Path(path).is_file():
        raise InputError(
            f"--input {path}: does not exist; check the path (a dataset of the Hugging Face hub is hf:NAME)"
        )
    inner = Path(path).with_suffix("").suffix if _compressed(path) else Path(path).suffix
    if inner == ".parquet":
        if _compressed(path):
            raise InputError(f"--input {path}: a compressed Parquet file; Parquet compresses itself: decompress it")
        return "parquet", "row"
    kind = {".jsonl": "jsonl", ".tsv": "tsv"}.get(inner, "text")
    return "stream" if _compressed(path) else "lines", kind


def record_reader(source):
    """A function that makes a dict of fields of a row of the source, or raises Unusable."""
    read = {
        "jsonl": json_object,
        "row": dict,
        "text": lambda row: {"text": _decoded(row)},
        "aligned": lambda row: {"src": _decoded(row[0]), "tgt": _decoded(row[1])},
        "tsv": functools.partial(_table_row, columns=source.columns),
    }[source.kind]
    return functools.partial(_renamed, read=read, names=source.names) if source.names else read


def _table_row(line, columns):
    values = _decoded(line).split("\t")
    if len(values) != len(columns):
        raise Unusable("missing field", f"{len(values)} columns, expected {len(columns)}")
    return dict(zip(columns, values, strict=True))


def _renamed(row, read, names):
    record = read(row)
    for name, path in names.items():
        value = record
        for part in [path] if path in record else path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            record = {**record, name: value}
    return record


def _decoded(line):
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None


# Pieces. Each is small to send to a worker, which calls read() for a Block whose first line is line 1 of the piece.


@dataclass(frozen=True)
class LinePiece:
    """The lines of a plain file that start in its bytes [start, stop)."""

    source: int  # its number in the corpus
    path: str
    start: int
    stop: int

    def read_bytes(self):
        """(the lines as they stand, the digest of bytes [start, stop))."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
            digest = _chunk_digest(self.start, data)
            if self.start:
                file.seek(self.start - 1)
                if file.read(1) != b"\n":  # the first line here began before
                    data = data[data.find(b"\n") + 1 or len(data) :]
            if data and not data.endswith(b"\n"):
                file.seek(self.stop)
                data += file.readline()
        return data, digest

    def read(self, data=None, digest=0):
        """The Block; of what read_bytes gave, if that has been called."""
        if data is None:
            data, digest = self.read_bytes()
        return Block(self.path, 1, _lines(data, first=self.start == 0), self.stop - self.start, digest)


@dataclass(frozen=True)
class AlignedPiece:
    """A LinePiece and the lines of the other file that belong to it, its bytes [target_start, target_stop)."""

    lines: LinePiece
    target: str
    target_start: int
    target_stop: int

    @property
    def source(self):
        return self.lines.source

    def read(self):
        block = self.lines.read()
        with open(self.target, "rb") as file:
            file.seek(self.target_start)
            data = file.read(self.target_stop - self.target_start)
        targets = _lines(data, first=self.target_start == 0)
        return dataclasses.replace(block, lines=list(zip(block.lines, targets, strict=True)))


@dataclass(frozen=True)
class RowsPiece:
    """Rows that had to be read in order: of a compressed file, of a table."""

    source: int
    path: str
    rows: list
    size: int

    def read(self):
        return Block(self.path, 1, self.rows, self.size)


def _lines(data, first):
    """The lines of bytes, without their ends and, if they are a file's first, without a byte order mark."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # nothing after the last line end (or nothing at all)
    if first and lines:
        lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    return [line.removesuffix(b"\r") for line in lines] if b"\r" in data else lines


def read_piece(piece, sources, *known):
    """The Block of a piece; the line that names a .tsv's columns is blank, wherever files were joined. `known` is what
    read_bytes gave."""
    block = piece.read(*known)
    header = sources[piece.source].header
    if header is not None:
        block.lines[:] = [b"" if row == header else row for row in block.lines]
    return block


def pieces(sources, shard, shards):
    """Yield the pieces of one shard, in order."""
    for number, source, start, stop in ranges(sources, shard, shards):
        if source.form in ("parquet", "dataset"):
            for rows, size in _parquet_rows(source) if source.form == "parquet" else _dataset_rows(source):
                yield RowsPiece(number, source.path, rows, size)
        elif source.form == "stream":
            yield from _stream_pieces(number, source)
        else:
            offsets = source.target and _target_offsets(source.path, source.target)
            for at in range(start, stop, PIECE_BYTES):
                piece = LinePiece(number, source.path, at, min(at + PIECE_BYTES, stop))
                if source.target:
                    k = at // PIECE_BYTES
                    piece = AlignedPiece(piece, source.target, offsets[k], offsets[k + 1])
                yield piece


def ranges(sources, shard, shards):
    """[(number, source, first byte, end)] of a shard: equal parts of the corpus, but for rounding to whole pieces."""
    total = sum(source.size for source in sources)
    low, high = total * shard // shards, total * (shard + 1) // shards
    found, begin = [], 0
    for number, source in enumerate(sources):
        start, stop = (_cut(source.size, position - begin) for position in (low, high))
        if source.form != "lines" or source.size == 0:  # not cut: here, or elsewhere
            here = low <= begin and (begin < high or shard == shards - 1)
            start, stop = (0, source.size) if here else (0, -1)
        if start < stop or stop == source.size == 0:
            found.append((number, source, start, stop))
        begin += source.size
    return found


def _cut(size, position):
    """Where a file is cut for a shard that ends `position` bytes after its beginning."""
    return size if position >= size else max(0, position // PIECE_BYTES * PIECE_BYTES)


def first_lines(parts):
    """{source number: lines of it that start before its part}, of the ranges of a shard: what line numbers start at."""
    # The first line, and one after each line end but the last byte's, which begins a line of the part.
    return {number: 1 + _count_newlines(source.path, start - 1) if start else 0 for number, source, start, _ in parts}


def _count_newlines(path, stop):
    count = 0
    with open(path, "rb") as file:
        while file.tell() < stop:
            count += file.read(min(8 << 20, stop - file.tell())).count(b"\n")
    return count


# Compressed files and tables. They are read in order by the main process; the workers do the rest.

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstd.ZstdError)


def _stream_pieces(number, source):
    if source.target is None:
        for lines, size in _line_blocks(source.path):
            yield RowsPiece(number, source.path, lines, size)
        return
    targets = itertools.chain.from_iterable(lines for lines, _ in _line_blocks(source.target))
    for lines, size in _line_blocks(source.path):
        yield RowsPiece(number, source.path, list(zip(lines, targets, strict=False)), size)


def _line_blocks(path):
    """Yield ([lines], bytes of the file read for them) of a compressed or a plain file."""
    rest, at, first = [], 0, True
    with open(path, "rb") as raw:
        try:
            file = _OPENERS[Path(path).suffix](raw) if _compressed(path) else raw
            while chunk := file.read(PIECE_BYTES):
                head, newline, tail = chunk.rpartition(b"\n")
                if newline:
                    yield _lines(b"".join([*rest, head, newline]), first), raw.tell() - at
                    rest, at, first = [], raw.tell(), False
                rest.append(tail)
        except _BROKEN as error:
            raise InputError(
                f"--input {path}: does not decompress ({error}); the file is cut off or no {Path(path).suffix} file: "
                "get it again"
            ) from None
        if any(rest):
            yield _lines(b"".join(rest), first), raw.tell() - at


def _parquet_rows(source):
    """Yield ([rows as dicts], bytes) of a Parquet file."""
    pyarrow = extra("pyarrow", f"--input {source.path}")
    parquet = extra("pyarrow.parquet", f"--input {source.path}")
    try:
        with parquet.ParquetFile(source.path) as file:
            rows, size = max(1, file.metadata.num_rows), source.size
            for batch in file.iter_batches(PIECE_ROWS):
                yield batch.to_pylist(), size * batch.num_rows // rows
    except pyarrow.ArrowException as error:
        raise InputError(f"--input {source.path}: no Parquet file that can be read ({error}); get it again") from None


def _dataset_rows(source):
    """Yield ([rows as dicts], 0) of a folder or a hub name that `datasets` can load, streamed."""
    datasets = extra("datasets", f"--input {source.path}")
    datasets.disable_progress_bars()
    path = Path(source.path)
    try:
        if (path / "state.json").is_file():  # what save_to_disk writes
            data = datasets.load_from_disk(source.path)
        else:
            name, config, split = (*source.path.removeprefix(HUB).split(":"), "", "")[:3]
            if path.is_dir():
                name, config, split = source.path, "", ""
            data = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for rows in data.iter(PIECE_ROWS):
            columns = list(rows)
            yield [dict(zip(columns, row, strict=True)) for row in zip(*rows.values(), strict=True)], 0
    except InputError:
        raise
    except Exception as error:  # the library raises its own, its file systems' and its builders' errors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"--input {source.path}: `datasets` cannot read it ({reason}); check the name") from None


# Aligned files


def check_aligned(parts):
    """Raise InputError unless both sides of all Moses pairs in the ranges of a shard have the same number of lines."""
    for _, source, _, _ in parts:
        if source.target is not None and source.form == "lines":
            _target_offsets(source.path, source.target)
        elif source.target is not None:
            sides = (source.path, source.target)
            _require_equal(*sides, *(sum(len(lines) for lines, _ in _line_blocks(side)) for side in sides))


@functools.lru_cache(maxsize=16)
def _target_offsets(path, target):
    """Where the lines of `target` begin that belong to each piece of `path`: an offset for each piece, and the end."""
    starts, before = [0], b"\n"  # lines that start before each piece: a line starts after each line end
    with open(path, "rb") as file:
        while chunk := file.read(PIECE_BYTES):
            starts.append(starts[-1] + chunk.count(b"\n") + (before == b"\n") - (chunk[-1:] == b"\n"))
            before = chunk[-1:]
    offsets, lines, at, before = [0], 0, 0, b"\n"
    with open(target, "rb") as file:
        while chunk := file.read(PIECE_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
            while len(offsets) < len(starts) and starts[len(offsets)] <= lines + len(ends):
                offsets.append(at + int(ends[starts[len(offsets)] - lines - 1]) + 1)
            lines, at, before = lines + len(ends), at + len(chunk), chunk[-1:]
    lines += before != b"\n"
    _require_equal(path, target, starts[-1], lines)
    return offsets[: len(starts) - 1] + [at] * max(1, len(starts) - len(offsets))


def _require_equal(src, tgt, src_lines, tgt_lines):
    if src_lines != tgt_lines:
        raise InputError(
            f"--src {src} has {src_lines} lines, --tgt {tgt} has {tgt_lines}; expected line-aligned files of "
            "the same length: find the lost line before going on"
        )


# Fingerprints. A file may be read by many shards, each of which knows a part: the digests of its chunks, whose places
# are hashed with them, are added. The sum is that of the whole file, however it was cut.

_MODULUS = 1 << 128


def fingerprints(parts, digests=None):
    """[{"path", "size", "xxh3_128"}] of the files in the ranges of a shard: the size and digest of the bytes read.
    `add_fingerprints` of all shards gives those of the whole files. `digests` has the sums of the digests of a plain
    file's pieces, by the number of its source, where they have been read already."""
    rows, digests = [], digests or {}
    for number, source, start, stop in parts:
        if source.form == "dataset":
            rows.append({"path": source.path, "size": 0, "xxh3_128": f"{0:032x}"})  # its own library's affair
            continue
        digest = _digest(source.path, start, stop) if number not in digests else f"{digests[number] % _MODULUS:032x}"
        rows.append({"path": source.path, "size": stop - start, "xxh3_128": digest})
        if source.target is not None:
            size = os.path.getsize(source.target)
            low, high = 0, size
            if source.form == "lines":
                offsets = _target_offsets(source.path, source.target)
                low = offsets[start // PIECE_BYTES] // PIECE_BYTES * PIECE_BYTES
                if stop < source.size:
                    high = offsets[stop // PIECE_BYTES] // PIECE_BYTES * PIECE_BYTES
            rows.append({"path": source.target, "size": high - low, "xxh3_128": _digest(source.target, low, high)})
    return rows


def add_fingerprints(rows):
    """The fingerprints of whole files from those of their parts."""
    files = {}
    for row in rows:
        size, total = files.get(row["path"], (0, 0))
        files[row["path"]] = size + row["size"], (total + int(row["xxh3_128"], 16)) % _MODULUS
    return [{"path": path, "size": size, "xxh3_128": f"{total:032x}"} for path, (size, total) in files.items()]


def _digest(path, start, stop):
    """The sum of the digests of the chunks of a file's bytes [start, stop); start is a multiple of PIECE_BYTES."""
    total = 0
    with open(path, "rb") as file:
        file.seek(start)
        for at in range(start, stop, PIECE_BYTES):
            total += _chunk_digest(at, file.read(min(PIECE_BYTES, stop - at)))
    return f"{total % _MODULUS:032x}"


def _chunk_digest(at, data):
    return xxhash.xxh3_128_intdigest(data, seed=at)
