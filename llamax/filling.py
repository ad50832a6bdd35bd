"""English sentences translated for the languages that a plan names: Algorithm 1 of the paper, its model g.

    python augment.py fill --plan plan.json --english news.en.gz --mono en.jsonl.zst --model nllb-200-1.3B \\
        --output data/filled.jsonl
    ct2-transformers-converter --model nllb-200-1.3B --output_dir nllb-ct2 --quantization float16
    python augment.py fill --plan plan.json --english news.en.gz --mono en.jsonl.zst --model nllb-200-1.3B \\
        --ctranslate2 nllb-ct2 --output data/filled.jsonl
    python augment.py pairs --lexicon lexicon.jsonl --input data/filled.jsonl --both-directions --output switched.jsonl

The sentences are those of --english that --mono has not (llamax/reserve.py). The paper's model is Lego-MT; any
M2M-100, NLLB-200, mBART-50 or MADLAD-400 of `transformers` will do that has the languages (llamax/translation.py).
A pair whose translation is empty is left out, and the next sentence takes its place.

The work is done in chunks of CHUNK sentences, each a file in OUTPUT.parts/: run again after an interruption, the same
command goes on with the chunk it was in, to the same bytes.
"""

import json
import os
import shutil
from pathlib import Path

from llamax.algorithm1 import read_plan
from llamax.files import (
    InputError,
    existing_file,
    existing_folder,
    fingerprint,
    read_json,
    replacing,
    require_same_origin,
    write_json,
    write_text,
)
from llamax.outputs import already_done, write_manifest
from llamax.records import Progress, Rejects, Unusable, count_lines, usable_text
from llamax.reserve import choose_sentences, flagged, mono_keys
from llamax.sources import find_sources, fingerprints, ranges
from llamax.translation import Translator

FORMAT = 1  # raised when the same arguments would give other bytes
CHUNK = 500  # sentences that an interruption costs at most
ARGUMENTS = ("field", "num_beams", "max_new_tokens", "max_chars", "dtype", "seed")  # that the bytes depend on


def add_fill_arguments(parser):
    add = parser.add_argument
    add("--plan", required=True, metavar="PLAN", help="what `augment.py plan` wrote")
    english = "English sentences: text, a sentence a line; .jsonl, .tsv or .parquet with text; also .gz, .zst, .xz"
    add("--english", nargs="+", required=True, metavar="FILE", help=english)
    add("--field", nargs="+", default=[], metavar="NAME=THEIRS", help="what the input calls text, lang")
    mono = "monolingual training data, whose English is not translated; text that names no language is English"
    add("--mono", nargs="+", default=[], metavar="FILE", help=mono)
    add("--model", required=True, metavar="DIR", help="Hugging Face folder of a translation model, safetensors")
    add("--ctranslate2", metavar="DIR", help="the same model as ct2-transformers-converter made it: faster")
    add("--output", required=True, metavar="FILE", help="pairs as .jsonl; and FILE.manifest.json beside it")
    add("--num-beams", type=int, default=4, help="beam search; 1 is greedy (default %(default)s)")
    add("--max-new-tokens", type=int, default=256, help="of a translation (default %(default)s)")
    add("--batch-tokens", type=int, default=4096, help="source tokens a batch, with padding (default %(default)s)")
    add("--max-chars", type=int, default=500, help="longer sentences are not taken (default %(default)s)")
    dtype = "of the weights (default: float32; with --ctranslate2, as they were converted)"
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=dtype)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: a GPU if there is one)")
    add("--seed", type=int, default=0, help="decides which sentences are taken (default %(default)s)")
    rate = "share of rejects that ends the run (default %(default)s)"
    add("--max-reject-rate", type=float, default=0.01, help=rate)


def check_args(args):
    """Raise one InputError with everything wrong; make paths of models Paths and --field {name: theirs}."""
    problems = [
        f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1"
        for name in ("num_beams", "max_new_tokens", "batch_tokens", "max_chars")
        if getattr(args, name) < 1
    ]
    if not 0 <= args.max_reject_rate <= 1:
        problems.append(f"--max-reject-rate {args.max_reject_rate}: expected a share from 0 to 1")
    if wrong := [pair for pair in args.field if "=" not in pair]:
        problems.append(f"--field {wrong[0]}: expected NAME=THEIRS")
    args.field = dict(pair.split("=", 1) for pair in args.field if "=" in pair)
    for name, check in (("plan", existing_file), ("model", existing_folder), ("ctranslate2", existing_folder)):
        try:
            value = getattr(args, name)
            setattr(args, name, value and check(value, f"--{name}"))
        except InputError as error:
            problems.append(str(error))
    for name in ("english", "mono"):
        try:
            with flagged(f"--{name}"):
                setattr(args, name, find_sources(getattr(args, name), {}, args.field))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))


def fill(args):
    check_args(args)
    rows = read_plan(args.plan)
    if not rows:
        raise InputError(f"--plan {args.plan}: asks for no sentences, as nothing lacks any; leave this step out")
    files = [fingerprint(args.plan), *(row for name in (args.english, args.mono) for row in corpus_files(name))]
    files += [fingerprint(path) for path in model_files(args)]
    wanted = {"arguments": {name: getattr(args, name) for name in ARGUMENTS}, "sources": files}
    wanted["arguments"]["ctranslate2"] = bool(args.ctranslate2)

    parts = Path(f"{args.output}.parts")
    begun = read_parts(parts, wanted)
    if not (begun and lacks_manifest_only(args.output, parts)) and already_done(args.output, FORMAT, **wanted):
        shutil.rmtree(parts, ignore_errors=True)
        print(f"{args.output}: complete, nothing to do")
        return
    translator = Translator(
        args.model, args.ctranslate2, args.device, args.dtype, args.num_beams, args.max_new_tokens, args.batch_tokens
    )
    translator.require([code for row in rows for code in row["into"]])
    translator.load()
    if not begun:
        begun = choose(args, rows, parts, wanted)
    done = translate_rows(rows, parts, translator)
    write_output(args.output, rows, parts, done, translator, begun["english"], wanted)


def corpus_files(sources):
    return fingerprints(ranges(sources, 0, 1))


def model_files(args):
    """Configuration, vocabulary and weights of the model that translates."""
    read = (".json", ".txt", ".model") if args.ctranslate2 else (".json", ".txt", ".model", ".safetensors")
    converted = sorted(args.ctranslate2.iterdir()) if args.ctranslate2 else []
    return [path for path in sorted(args.model.iterdir()) if path.suffix in read] + converted


def read_parts(parts, wanted):
    """What an interrupted run recorded of its sentences, or None if there was none that had chosen them.

    Raises InputError if it was another one: its translations took long, so they are not thrown away.
    """
    if not (parts / "parts.json").is_file():
        return None
    found = read_json(parts / "parts.json", "--output")
    remedy = f"give the same again to go on, or remove {parts} to begin anew"
    if not isinstance(found, dict) or not isinstance(found.get("english"), dict):
        raise InputError(f"{parts}: does not say what it was made of; {remedy}")
    require_same_origin(found, {"format": FORMAT, "sources": wanted["sources"], **wanted["arguments"]}, parts, remedy)
    return found


def lacks_manifest_only(output, parts):
    """Whether the run was killed between the renaming of its two last files."""
    if os.path.lexists(f"{output}.manifest.json") or not os.path.isfile(output):
        return False
    return os.path.getsize(output) == sum(path.stat().st_size for path in parts.glob("*.jsonl"))


def choose(args, rows, parts, wanted):
    """Choose the sentences of each row and write them to PARTS/NAME.txt, by rank; returns what PARTS/parts.json says,
    which is written last."""
    rejects = Rejects(args.output)
    with flagged("--mono"):
        mono = mono_keys(args.mono, rejects)
    needed = {row["fills"]: row["sentences"] for row in rows}
    with flagged("--english"):
        chosen, counts = choose_sentences(args.english, mono, needed, args.seed, args.max_chars, rejects)
        rejects.judge(args.max_reject_rate)
    shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed here
    for name, sentences in chosen.items():
        write_text(parts / f"{name}.txt", "".join(f"{sentence}\n" for sentence in sentences))
    begun = {"format": FORMAT, **wanted, "english": counts | {"rejects": dict(rejects.reasons)}}
    write_json(parts / "parts.json", begun)
    return begun


def translate_rows(rows, parts, translator):
    """Make the chunks that are missing. Returns {name: (files of its chunks, pairs, sentences tried)}."""
    there = sum(count_lines(path) for path in parts.glob("*.jsonl"))
    progress = Progress(sum(row["sentences"] for row in rows) - there, " sentences", "translating", scale=False)
    done = {}
    for row in rows:
        name, wanted = row["fills"], row["sentences"]
        sentences = (parts / f"{name}.txt").read_bytes().decode("utf-8").split("\n")[:-1]  # U+2028 ends no line
        paths, pairs, at = [], 0, 0
        while pairs < wanted and at < len(sentences):
            chunk = sentences[at : at + min(CHUNK, wanted - pairs)]  # depends on the chunks before, which are there
            paths.append(parts / f"{name}.{at:09d}.jsonl")
            if paths[-1].is_file():
                pairs += count_lines(paths[-1])
            else:
                lines = translate_chunk(chunk, row["into"], translator)
                write_text(paths[-1], "".join(lines))
                pairs += len(lines)
                progress.update(len(lines))
            at += len(chunk)
        done[name] = paths, pairs, at
    progress.close()
    return done


def translate_chunk(sentences, into, translator):
    """The pairs that can be used, as lines: of each sentence with its translation, or of its two translations."""
    columns = [translator.translate(sentences, code) for code in into]
    languages = into
    if len(into) == 1:
        columns, languages = [sentences, *columns], ["en", *into]
    lines = []
    for src, tgt in zip(*columns, strict=True):
        try:
            pair = {"src": usable_text(src, "src"), "tgt": usable_text(tgt, "tgt")}
        except Unusable:
            continue
        pair |= {"src_lang": languages[0], "tgt_lang": languages[1], "loss": "all", "origin": "fill"}
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    return lines


def write_output(output, rows, parts, done, translator, english, wanted):
    """Join the chunks to the output, remove them, and report."""
    missing = {row["fills"]: n for row in rows if (n := row["sentences"] - done[row["fills"]][1])}
    unusable = {name: tried - pairs for name, (_, pairs, tried) in done.items() if tried > pairs}
    total = sum(pairs for _, pairs, _ in done.values())
    with replacing(output, f"{output}.manifest.json") as (partial, manifest):
        with open(partial, "wb") as file:
            for paths, _, _ in done.values():
                for path in paths:
                    file.write(path.read_bytes())
        write_manifest(
            manifest,
            partial,
            FORMAT,
            translator.packages,
            kind="fill",
            pairs=total,
            counts={name: pairs for name, (_, pairs, _) in done.items()},
            unusable=unusable,
            missing=missing,
            english=english,
            **wanted,
        )
    shutil.rmtree(parts)
    lost = f"{sum(unusable.values()):,} translations could not be used"
    if missing:
        lost += " and none are left in their place: " + ", ".join(f"{name} lacks {n:,}" for name, n in missing.items())
    print(
        f"{output}: {total:,} pairs of {len(done):,} language pairs; {lost}; of {english['read']:,} English sentences "
        f"{english['in_mono']:,} are in --mono, {english['too_long']:,} are too long"
    )
