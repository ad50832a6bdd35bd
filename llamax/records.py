"""Reading records in bounded memory: blocks of lines, worker processes, rejects with file and line, progress.

A stage turns its input files into blocks of whole lines (`read_blocks`), maps a function over them in order
(`map_blocks`), and collects what could not be used (`Rejects`). Nothing depends on the number of workers.
"""

import collections
import concurrent.futures
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from llamax.files import InputError
from llamax.languages import resolve

BLOCK_BYTES = 2 << 20
LOG_SECONDS = 30  # between two lines of progress in a log file


@dataclass(frozen=True)
class Block:
    """Whole lines of one file: `lines` without their ends, the first being line `first_line` (from 1)."""

    path: str
    first_line: int
    lines: list[bytes]
    size: int  # bytes read, line ends included


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why."""

    path: str
    line: int
    reason: str
    detail: str = ""


class Unusable(Exception):
    """Raised by a parser: (reason) or (reason, detail). Reasons are few and fixed; they are counted."""


def read_blocks(path, block_bytes=BLOCK_BYTES):
    """Yield the file as Blocks. Only \\n and \\r\\n end a line: U+2028 and the like are text."""
    first_line, rest = 1, b""
    with open(path, "rb") as file:
        while chunk := file.read(block_bytes):
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                rest += chunk
                continue
            lines = (rest + head).split(b"\n")
            yield Block(str(path), first_line, [_without_return(line) for line in lines], len(rest) + len(head) + 1)
            first_line += len(lines)
            rest = tail
    if rest:
        yield Block(str(path), first_line, [_without_return(rest)], len(rest))


def _without_return(line):
    return line[:-1] if line.endswith(b"\r") else line


def count_lines(path):
    """Lines in a file, a last one without its end included."""
    return sum(len(block.lines) for block in read_blocks(path))


def map_blocks(function, blocks, workers):
    """Yield function(block) for each block, in order, computed by `workers` processes (1: in this one).

    The processes are forked, so that they share what is loaded before the first result is asked for; at most two
    blocks a worker are under way, so that memory stays bounded.
    """
    if workers == 1:
        yield from map(function, blocks)
        return
    global _function
    _function = function  # inherited by the fork: a tokenizer is neither pickled nor loaded again
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending = collections.deque()
        try:
            for block in blocks:
                pending.append(pool.submit(_call, block))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely for lack of memory; run again with fewer --workers"
            ) from None
        finally:
            for future in pending:
                future.cancel()


_function = None


def _call(block):
    return _function(block)


def parse_lines(block, parse):
    """Parse each line that is not blank: ([values], [line numbers], [Rejects])."""
    values, numbers, rejects = [], [], []
    for number, line in enumerate(block.lines, block.first_line):
        if not line.strip():
            continue
        try:
            values.append(parse(line))
            numbers.append(number)
        except Unusable as why:
            rejects.append(Reject(block.path, number, *why.args))
    return values, numbers, rejects


def json_object(line):
    """The JSON object of a line, or Unusable."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable("invalid JSON", str(error)) from None
    if not isinstance(value, dict):
        raise Unusable("not an object", f"found {type(value).__name__}")
    return value


def plain_text(line):
    """The text of a line, or Unusable."""
    try:
        return usable_text(line.decode("utf-8"), "text")
    except UnicodeDecodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None


def text_field(record, name):
    """A record's text, or Unusable if it is missing, no string, blank, or holds what no text should."""
    if name not in record:
        raise Unusable("missing field", name)
    if not isinstance(record[name], str):
        raise Unusable("wrong type", f"{name} is {type(record[name]).__name__}, expected a string")
    return usable_text(record[name], name)


def usable_text(text, name):
    """The text itself, or Unusable."""
    if not text or text.isspace():
        raise Unusable("empty", name)
    if "\x00" in text:
        raise Unusable("null character", name)
    try:
        text.encode("utf-8")  # JSON can spell half of a surrogate pair
    except UnicodeEncodeError as error:
        raise Unusable("invalid UTF-8", f"{name}: {error}") from None
    return text


def language_field(record, name, default=None):
    """A record's language as its code in languages.tsv, or Unusable; `default` where the field is missing."""
    value = record.get(name, default)
    if value is None:
        raise Unusable("missing field", name)
    if not isinstance(value, str):
        raise Unusable("wrong type", f"{name} is {type(value).__name__}, expected a string")
    try:
        return resolve(value).code
    except InputError as error:
        raise Unusable("unknown language", str(error)) from None


class Rejects:
    """Writes NAME.rejects.jsonl as records are rejected, counts reasons, and judges the rate at the end."""

    def __init__(self, prefix):
        self.path = Path(f"{prefix}.rejects.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self.reasons = collections.Counter()
        self.records = 0

    def add(self, records, rejects):
        """Count `records` records read, of which `rejects` cannot be used."""
        self.records += records
        if not rejects:
            return
        self.reasons.update(reject.reason for reject in rejects)
        with open(self.path, "a", encoding="utf-8") as file:
            for reject in rejects:
                row = {"file": reject.path, "line": reject.line, "reason": reject.reason, "detail": reject.detail}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def judge(self, limit):
        """Raise InputError if no record is left or if more than `limit` (a share) of them were rejected."""
        count = sum(self.reasons.values())
        if count > limit * self.records:
            reasons = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
            raise InputError(
                f"{self.path}: {count} of {self.records} records ({count / self.records:.2%}) cannot be used "
                f"({reasons}), more than --max-reject-rate {limit:g} allows; mend them or raise the limit"
            )
        if self.records == count:
            raise InputError("--input: no usable record in any file; check that the files are the ones you meant")


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a line every LOG_SECONDS."""

    def __init__(self, total, unit, what, scale=True):
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, unit=unit, desc=what, unit_scale=scale, disable=not self.terminal, file=sys.stderr)
        self.total, self.unit, self.what, self.scale = total, unit, what, scale
        self.count, self.start = 0, time.monotonic()
        self.logged = self.start

    def update(self, n):
        self.count += n
        self.bar.update(n)
        now = time.monotonic()
        if not self.terminal and now - self.logged >= LOG_SECONDS:
            self.logged = now
            line = tqdm.format_meter(
                self.count, self.total, now - self.start, prefix=self.what, unit=self.unit, unit_scale=self.scale
            )
            print(line, file=sys.stderr, flush=True)

    def close(self):
        self.bar.close()
