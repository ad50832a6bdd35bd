"""Errors and files, handled alike by every stage.

An error a user can mend is raised as InputError and shown as one line; an output appears whole or not at all,
because it is written beside its final name and renamed last.
"""

import argparse
import contextlib
import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import psutil


class InputError(Exception):
    """Something the user gave cannot be used. The message names the file or flag, what was found, what was
    expected, and the remedy, in one line."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, as all others are, and that takes no abbreviations."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message):
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
            sys.exit(1)  # one line is enough
        raise InputError(f"{message}; --help lists the options")


def run(main):
    """Call main() as a script's entry point: what a user can mend ends as one line on stderr and exit status 1."""
    script = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # whoever read our output, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None and not error.filename:  # not from a file: a fault of ours, show where
            raise
        message = file_error(error)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    else:
        return
    print(f"{script}: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


def file_error(error):
    """An OSError as a line with file, reason and remedy."""
    remedy = {
        errno.ENOSPC: "free some space or choose another folder, then run the same command again",
        errno.EDQUOT: "free some quota or choose another folder, then run the same command again",
        errno.ENOENT: "check the path",
        errno.EACCES: "check the permissions",
    }.get(error.errno, "check the path and the file system")
    return f"{error.filename or 'an output file'}: {error.strerror or error}; {remedy}"


def existing_file(path, flag):
    """The path as a Path, or an InputError naming the flag if no such file can be read."""
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{flag} {path}: {found}, expected a file; check the path")
    return path


def existing_folder(path, flag):
    """The path as a Path, or an InputError naming the flag if it is not a folder."""
    path = Path(path)
    if not path.is_dir():
        found = "is a file" if path.is_file() else "does not exist"
        raise InputError(f"{flag} {path}: {found}, expected a folder; check the path")
    return path


def extra(name, needed_by):
    """A library of requirements-data.txt, or an InputError that says what needs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(f"{needed_by}: needs {package}; pip install -r requirements-data.txt") from None


@contextlib.contextmanager
def replacing(*paths):
    """Yield one temporary path for each final path; on success all are flushed to disk and renamed, the last
    path last (make it the completeness marker); on failure all are removed and what was there before stays."""
    paths = [Path(p) for p in paths]
    partial = [partial_path(p) for p in paths]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_dead_partials(path)
        with naming(paths[0]):
            yield partial[0] if len(paths) == 1 else partial
            for temporary in partial:
                if temporary.is_file():
                    with open(temporary, "rb") as file:
                        os.fsync(file.fileno())
        for temporary, path in zip(partial, paths, strict=True):
            if temporary.exists():
                os.replace(temporary, path)
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)


def partial_path(path):
    """The temporary name of an output, in its folder: it tells which process writes it."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.partial")


def remove_dead_partials(path):
    """Remove what processes that are no more (killed, say) had written of the output `path`: those of this machine,
    and those of other ones that have not written for a day."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(.+)\.(\d+)\.partial")
    for entry in list(os.scandir(path.parent)):
        match = pattern.fullmatch(entry.name)
        if not match:
            continue
        with contextlib.suppress(FileNotFoundError):  # renamed in the meantime, or removed by another task
            if match[1] == os.uname().nodename:
                dead = not psutil.pid_exists(int(match[2]))
            else:
                dead = time.time() - entry.stat().st_mtime > 24 * 3600
            if dead:
                (shutil.rmtree if entry.is_dir() else os.unlink)(entry.path)


@contextlib.contextmanager
def scratch_folder(path):
    """Yield a folder beside the output `path` for what need not outlive this process; removed on the way out."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_partials(path)
    folder = partial_path(path)
    folder.mkdir()
    try:
        with naming(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def naming(path):
    """Give an OSError that names no file (a failed write does not) the path it was about."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path, text):
    """Write a small text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write a small JSON file whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path, flag="file"):
    """The value of a JSON file, or an InputError that names the flag and file."""
    path = existing_file(path, flag)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise InputError(f"{flag} {path}: not valid JSON ({error}); check that the file is complete") from None


def fingerprint(path):
    """The file's size in bytes and BLAKE2b-128 digest: {"path", "size", "blake2b"}."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"path": str(path), "size": os.path.getsize(path), "blake2b": digest.hexdigest()}


def reason(error):
    """The first line of any exception's message, or its type: for those of libraries, each of which has its own."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def require_same_origin(manifest, wanted, output, remedy):
    """Raise InputError if a manifest says that `output` was made otherwise than `wanted`, {argument: value} with the
    format and the fingerprints of the sources: an existing output is never overwritten, nor taken for another."""
    found = {key: manifest.get(key) for key in ("format", "sources")} | manifest.get("arguments", {})
    for key, value in wanted.items():
        if found.get(key) != value:
            what = "other source files" if key == "sources" else f"{key} {found.get(key)!r}, now {value!r}"
            raise InputError(f"{output}: exists, made with {what}; {remedy}")
