"""The folder that evaluate.py generate fills: what it holds, what it was made from, and what is only begun.

hypotheses/SRC-TGT.txt             a direction, a line a sentence; complete
hypotheses/SRC-TGT.partial.jsonl   {"line", "text"} of those translated so far; text is null for one left for another
                                   batch
generate.json                      model, options and sources; other ones are refused
"""

import hashlib
import json
import platform
from importlib.metadata import version

from llamax.files import InputError, existing_file, fingerprint, read_json, write_json, write_text
from llamax.languages import resolve

HASHED_WHOLE = 1 << 30  # bytes; of a larger file of weights 64 pieces are hashed
PIECE = 1 << 20
REMEDY = "choose another --output or remove this one"


def hypotheses_files(output):
    """{(source code, target code): file} of what generate, or someone else, put into OUTPUT/hypotheses."""
    files = {}
    for path in sorted((output / "hypotheses").glob("*.txt")):
        codes = path.stem.split("-")
        if len(codes) != 2:
            raise InputError(f"{path}: expected a name of the form SRC-TGT.txt, for instance en-fr.txt; move it away")
        try:
            direction = tuple(resolve(code).code for code in codes)
        except InputError as error:
            raise InputError(f"{path}: {error}; or move the file away") from None
        if direction in files:
            raise InputError(f"{path}: of the same direction as {files[direction].name}; move one of them away")
        files[direction] = path
    if not files:
        raise InputError(f"--output {output}: no hypotheses/SRC-TGT.txt in it; run evaluate.py generate first")
    return files


def hypotheses_file(output, direction):
    return output / "hypotheses" / f"{'-'.join(direction)}.txt"


def partial_file(output, direction):
    return output / "hypotheses" / f"{'-'.join(direction)}.partial.jsonl"


def is_complete(output, direction):
    return hypotheses_file(output, direction).is_file()


def read_record(path, key):
    """What a record of evaluate.py, generate.json or score.json, says under `key`."""
    record = read_json(path, "--output")
    if not isinstance(record, dict) or not isinstance(record.get(key), dict):
        raise InputError(f"{path}: says nothing of {key}, so it is not this script's record; move it away")
    return record[key]


def sources_before(output, settings):
    """The sources of the hypotheses in OUTPUT as generate.json has them, {} if there are none yet.

    Raises InputError if they were made otherwise: they would be taken for those to come. Directions, device and size of
    batches may differ, as they do not change what a sentence is translated into.
    """
    path = output / "generate.json"
    if not any((output / "hypotheses").glob("*")):
        return {}
    if not path.is_file():
        raise InputError(f"--output {output}: hypotheses without {path}, so of unknown origin; {REMEDY}")
    old = read_record(path, "settings")
    for name in settings | old:
        found, value = old.get(name), settings.get(name)
        if found != value:
            what = "another one" if name in ("model", "tokenizer") else f"{found!r}, now {value!r}"
            raise InputError(f"--output {output}: made with {name.replace('_', '-')} {what}; {REMEDY}")
    return read_record(path, "sources")


def claim(output, record):
    """Write OUTPUT/generate.json, with the sources of earlier runs, or raise InputError if OUTPUT holds hypotheses that
    were made otherwise."""
    for key, found in sources_before(output, record["settings"]).items():
        if record["sources"].setdefault(key, found) != found:
            raise InputError(f"--output {output}: made from another source text for {key}; {REMEDY}")
    write_json(output / "generate.json", record)


def read_partial(output, direction):
    """({line number from 0: text}, {line numbers left for another batch}) of a direction that is only begun. What a
    killed process left half-written is not there; what is there twice was translated again."""
    path, texts, left = partial_file(output, direction), {}, set()
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            row = json.loads(line)
            number, text = row["line"], row["text"]
        except (ValueError, KeyError, TypeError):
            continue
        if text is None:
            left.add(number)
        else:
            texts[number] = text
    return texts, left


def append_partial(output, batch, texts):
    """Add the texts of a batch of sentences to the files of their directions, but for those that are complete."""
    lines = {}
    for sentence, text in zip(batch, texts, strict=True):
        if is_complete(output, sentence.direction):
            continue
        row = json.dumps({"line": sentence.number, "text": text}, ensure_ascii=False)
        lines.setdefault(sentence.direction, []).append(row)
    for direction, rows in lines.items():
        path = partial_file(output, direction)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            # Begins a line: what a killed process was writing is not continued.
            file.write(("\n" + "\n".join(rows) + "\n").encode("utf-8"))


def finish(output, direction, lines):
    """Write a direction that is complete."""
    write_text(hypotheses_file(output, direction), "".join(f"{line}\n" for line in lines))
    partial_file(output, direction).unlink(missing_ok=True)


# What things are made from


def model_files(folder):
    """What tells one model from another: name, size and digest of its configuration and weights."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"--hf-model {folder}: holds no .safetensors; make the folder with convert_hf.py to-hf")
    files = [existing_file(folder / "config.json", "--hf-model"), *weights]
    return [{"file": path.name, "size": path.stat().st_size, "blake2b": digest(path)} for path in files]


def digest(path, whole=HASHED_WHOLE):
    """The file's BLAKE2b digest; of a large file that of 64 pieces, since further training changes all of them."""
    size = path.stat().st_size
    if size <= whole:
        return fingerprint(path)["blake2b"]
    pieces = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(i * (size - PIECE) // 63)
            pieces.update(file.read(PIECE))
    return f"64-pieces-{pieces.hexdigest()}"


def lines_digest(lines):
    return hashlib.blake2b("\n".join(lines).encode("utf-8"), digest_size=16).hexdigest()


def versions(*packages):
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
