"""Reading records in bounded memory: blocks of lines, worker processes, rejects with file and line, progress.

A stage turns its input files into blocks of whole lines (`read_blocks`), maps a function over them in order
(`map_blocks`), and collects what could not be used (`Rejects`). Nothing depends on the number of workers.
"""

import collections
import concurrent.futures
import ctypes
import functools
import gc
import json
import mmap
import multiprocessing
import pickle
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tqdm import tqdm

from llamax.files import InputError
from llamax.languages import resolve

BLOCK_BYTES = 2 << 20
LOG_SECONDS = 30  # between two lines of progress in a log file
# Reasons for which a usable record is left out because the user asked for it; all others are faults of the data.
UNWANTED = frozenset(
    (
        "too short", "repetitive", "wrong language", "length ratio", "identical sides", "in a test set", "duplicate",
        "near-duplicate",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Whole lines of one file: `lines` without their ends, the first being line `first_line` (from 1). Of a table,
    rows; of two aligned files, pairs of lines."""

    path: str
    first_line: int
    lines: list
    size: int  # bytes read, line ends included
    digest: int = 0  # of these bytes, see llamax.sources


@dataclass(frozen=True)
class Reject:
    """A record that cannot be used, and why."""

    path: str
    line: int
    reason: str
    detail: str = ""
    group: str = ""  # its language or language pair, where it says one


class Unusable(Exception):
    """Raised by a parser: (reason) or (reason, detail). Reasons are few and fixed; they are counted. The language or
    language pair may be added as `group`."""

    group = ""


def read_blocks(path, block_bytes=BLOCK_BYTES):
    """Yield the file as Blocks. Only \\n and \\r\\n end a line: U+2028 and the like are text."""
    first_line, rest = 1, []  # a line may be many chunks long
    with open(path, "rb") as file:
        while chunk := file.read(block_bytes):
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                data = b"".join([*rest, head])
                lines = data.split(b"\n")
                yield Block(str(path), first_line, [_without_return(line) for line in lines], len(data) + 1)
                first_line += len(lines)
                rest = []
            rest.append(tail)
    if data := b"".join(rest):
        yield Block(str(path), first_line, [_without_return(data)], len(data))


def _without_return(line):
    return line[:-1] if line.endswith(b"\r") else line


def count_lines(path):
    """Lines in a file, a last one without its end included."""
    return sum(len(block.lines) for block in read_blocks(path))


def map_blocks(function, blocks, workers):
    """Yield function(block) for each block, in order, computed by `workers` processes (1: in this one).

    The processes are forked, so that they share what is loaded before the first result is asked for; at most two
    blocks a worker are under way, so that memory stays bounded. The arrays of a result are valid until the next one is
    asked for: they lie in memory that is shared with the workers and used again.
    """
    keep_freed_memory()
    if workers == 1:
        yield from map(function, blocks)
        return
    global _function, _slots
    _function = function  # inherited by the fork: a tokenizer is neither pickled nor loaded again
    _slots = [mmap.mmap(-1, _SLOT_BYTES) for _ in range(2 * workers + 1)]
    free = list(range(len(_slots)))
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker) as pool:
        pending = collections.deque()

        def oldest():
            future, slot = pending.popleft()
            pickled, spans = future.result()
            free.append(slot)  # used again only after this result
            return pickle.loads(pickled, buffers=[memoryview(_slots[slot])[a:b] for a, b in spans])

        try:
            for block in blocks:
                slot = free.pop()
                pending.append((pool.submit(_call, block, slot), slot))
                if not free:
                    yield oldest()
            while pending:
                yield oldest()
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely for lack of memory; run again with fewer --workers"
            ) from None
        finally:
            for future, _ in pending:
                future.cancel()


_function, _slots = None, []
_SLOT_BYTES = 16 << 20  # of address space: what a result does not fill takes no memory


def _call(block, slot):
    """function(block) pickled, and the spans of a slot that its arrays have been copied to."""
    spans, memory = [], _slots[slot]

    def copy_out(buffer):
        data = buffer.raw()
        start = spans[-1][1] if spans else 0
        if start + len(data) > len(memory):
            return True  # pickled with the rest
        memory[start : start + len(data)] = data
        spans.append((start, start + len(data)))
        return False

    return pickle.dumps(_function(block), 5, buffer_callback=copy_out), spans


def _start_worker():
    if sys.platform == "linux":  # a worker must not outlive the main process, should that be killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()  # what the parent loaded is no garbage: looking through it would copy its pages, too


def keep_freed_memory():
    """glibc gives large arrays back to the system at once and gets their like anew, page by page, at the next block or
    batch: 10 % of the time of preprocessing, more of translating on a CPU. What was freed before, workers need not
    inherit. Other C libraries have no such functions."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_PR_SET_PDEATHSIG = 1  # sys/prctl.h


def parse_lines(block, parse):
    """Parse each line that is not blank: ([values], [line numbers], [Rejects])."""
    values, numbers, rejects = [], [], []
    for number, line in enumerate(block.lines, block.first_line):
        if not line or (type(line) is bytes and line.isspace()):
            continue
        try:
            values.append(parse(line))
            numbers.append(number)
        except Unusable as why:
            rejects.append(Reject(block.path, number, *why.args, group=why.group))
    return values, numbers, rejects


def json_object(line):
    """The JSON object of a line, or Unusable."""
    try:
        value = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # NaN, say, is valid JSON to others
        value = _json_value(line)
    if type(value) is not dict:
        raise Unusable("not an object", f"found {type(value).__name__}")
    return value


_decode = msgspec.json.Decoder().decode


def _json_value(line):
    """As json.loads has it; or what is wrong, as a reader knows it from there."""
    try:
        value = json.loads(line.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # JSON can spell half of a surrogate pair
        return value
    except UnicodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise Unusable("invalid JSON", str(error)) from None


def plain_text(line):
    """The text of a line, or Unusable."""
    try:
        return usable_text(line.decode("utf-8"), "text")
    except UnicodeDecodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None


def text_field(record, name):
    """A record's text, or Unusable if it is missing, no string, blank, or holds what no text should."""
    text = record.get(name)
    if type(text) is str:
        if text and "\x00" not in text and not text.isspace():
            return text  # a record's text is UTF-8: json_object has seen to that
        return usable_text(text, name)
    if name not in record:
        raise Unusable("missing field", name)
    raise Unusable("wrong type", f"{name} is {type(text).__name__}, expected a string")


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
    value = record.get(name)
    if value is None:
        value = default
    if value is None:
        raise Unusable("missing field", name)
    if type(value) is not str:
        raise Unusable("wrong type", f"{name} is {type(value).__name__}, expected a string")
    try:
        return language_code(value)
    except InputError as error:
        raise Unusable("unknown language", str(error)) from None


@functools.lru_cache(maxsize=4096)
def language_code(value):
    """The code in languages.tsv of whatever a language goes by; InputError if it is none."""
    return resolve(value).code


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
        judge(self.path, self.reasons, self.records, limit)


def judge(path, reasons, records, limit):
    """Raise InputError if more than `limit` (a share) of the records could not be used, or if none is left. Records
    that the user asked to leave out (UNWANTED) are no fault of the data."""
    faults = {reason: n for reason, n in reasons.most_common() if reason not in UNWANTED}
    count = sum(faults.values())
    if count > limit * records:
        raise InputError(
            f"{path}: {count} of {records} records ({count / records:.2%}) cannot be used "
            f"({', '.join(f'{reason} {n}' for reason, n in faults.items())}), more than --max-reject-rate {limit:g} "
            "allows; mend them or raise the limit"
        )
    if records == sum(reasons.values()):
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
