"""Translate Flores with beam search, score with spBLEU and chrF++, and show the result (LLaMAX, sections 3 and 4).

    python evaluate.py generate --hf-model out/hf --flores flores101 --directions 'en-*,*-en' --output out/flores
    python evaluate.py score    --output out/flores --flores flores101 --spbleu-model sacrebleu_tokenizer_spm.model
    python evaluate.py report   --output out/flores
    python evaluate.py report   --output out/flores out/baseline     (systems side by side)
    python evaluate.py score-files --hypothesis hyp.de --reference ref.de --tgt-lang de

generate writes OUTPUT/hypotheses/SRC-TGT.txt, a line a sentence, and OUTPUT/generate.json, which says how they were
made; run again, it translates the directions that are missing. On a GPU add --batch-size 64; the tasks of a Slurm job
array share one --output and take other --directions each. score writes OUTPUT/scores.jsonl, a line a direction and
metric, and report matrix_spBLEU.csv, matrix_spBLEU.png and report.html.
"""

import functools
import hashlib
import itertools
import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

from llamax.files import (
    InputError,
    Parser,
    existing_file,
    existing_folder,
    fingerprint,
    read_json,
    replacing,
    run,
    write_json,
    write_text,
)
from llamax.languages import resolve
from llamax.prompts import PROMPTS, prompt_ids, recorded_prompt, translation_prompt
from llamax.records import Progress, count_lines, map_blocks, read_blocks
from llamax.report import METRICS, averages, direction_matrix, html_report, matrix_csv, matrix_png, read_scores
from llamax.scoring import language_bleu, reference_metrics, score_lines, spbleu_tokenizer
from llamax.tokenizer import load_tokenizer

GROUP_BATCHES = 64  # batches between two writes: more sorts sentences better by length, fewer loses less work
SCORE_DIRECTIONS = 16  # directions into one language that are scored by one process at a time
HASHED_WHOLE = 1 << 30  # bytes; of a larger file of weights 64 pieces are hashed
PIECE = 1 << 20


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="generate|score|report|score-files")

    def command(name, text):
        return commands.add_parser(name, help=text, description=text).add_argument

    flores = "folder that holds SPLIT/LANGUAGE.SPLIT files (Flores-101 or -200)"
    spbleu = "spBLEU's SentencePiece file (default: sacrebleu's flores101, which it downloads once)"

    add = command("generate", "translate with a Hugging Face model")
    add("--hf-model", required=True, metavar="DIR", help="config.json, *.safetensors and tokenizer.model")
    add("--flores", required=True, metavar="DIR", help=flores)
    add("--directions", required=True, help="comma-separated a-b, a-*, *-b, or all; * is every language with a file")
    add("--output", required=True, metavar="DIR", help="writes DIR/hypotheses/SRC-TGT.txt and DIR/generate.json")
    add("--split", choices=("dev", "devtest"), default="devtest", help="(default %(default)s)")
    add("--limit", type=int, help="only the first so many sentences of each file (default: all)")
    add("--num-beams", type=int, default=4, help="1 is greedy search (default %(default)s)")
    add("--max-new-tokens", type=int, default=256, help="tokens a translation (default %(default)s)")
    add("--batch-size", type=int, default=32, help="sentences translated at once (default %(default)s)")
    add("--prompt", choices=(*PROMPTS, "none"), help="none: the bare source (default: the prompt that the model was "
        "tuned with, as its folder's llamax.json says, else llamax)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: bfloat16 on a GPU")

    add = command("score", "score the hypotheses of an --output folder")
    add("--output", required=True, metavar="DIR", help="reads DIR/hypotheses, writes DIR/scores.jsonl")
    add("--flores", required=True, metavar="DIR", help=flores)
    add("--split", choices=("dev", "devtest"), help="(default: generate's, else devtest)")
    add("--limit", type=int, help="only the first so many lines of each reference (default: generate's, else all)")
    add("--spbleu-model", metavar="FILE", help=spbleu)
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")

    add = command("report", "draw the matrix and write an HTML report")
    add("--output", required=True, nargs="+", metavar="DIR", help="scored folders; several stand side by side")
    add("--flores", metavar="DIR", help="for the sample translations (default: the one score read)")
    add("--html", metavar="FILE", help="(default: report.html in the first --output)")

    add = command("score-files", "score one file of any origin")
    add("--hypothesis", required=True, metavar="FILE", help="a translation a line")
    add("--reference", required=True, nargs="+", metavar="FILE", help="line-aligned with it; several are allowed")
    add("--tgt-lang", required=True, metavar="CODE", help="language code (llamax/languages.tsv); chooses BLEU's tokens")
    add("--spbleu-model", metavar="FILE", help=spbleu)

    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args):
    """Raise one InputError with every number out of range, then one for the first path that is missing."""
    numbers = ("limit", "num_beams", "max_new_tokens", "batch_size", "workers")
    given = {name: getattr(args, name, None) for name in numbers}
    problems = [
        f"--{name.replace('_', '-')} {value}: expected at least 1"
        for name, value in given.items()
        if value is not None and value < 1
    ]
    if problems:
        raise InputError("; ".join(problems))
    for name, check in (
        ("hf_model", existing_folder),
        ("flores", existing_folder),
        ("spbleu_model", existing_file),
        ("hypothesis", existing_file),
    ):
        if getattr(args, name, None) is not None:
            setattr(args, name, check(getattr(args, name), f"--{name.replace('_', '-')}"))
    if args.command == "generate":
        args.output = Path(args.output)
        args.prompt = args.prompt or recorded_prompt(args.hf_model)
    elif args.command == "score":
        args.output = existing_folder(args.output, "--output")
    elif args.command == "report":
        args.output = list(dict.fromkeys(existing_folder(path, "--output") for path in args.output))
    else:
        args.reference = [existing_file(path, "--reference") for path in args.reference]
        args.tgt_lang = resolve(args.tgt_lang)


# Test sets


def flores_files(folder, split):
    """{language code: file} of a Flores folder, under whichever of the language's codes the file is named."""
    files = {}
    for path in sorted(existing_folder(folder / split, "--flores").glob(f"*.{split}")):
        try:
            language = resolve(path.stem)
        except InputError:
            continue  # no test set, or of a language that --directions could not name either
        if language.code not in files or path.stem == getattr(language, f"flores101_{split}"):
            files[language.code] = path
    if not files:
        raise InputError(f"--flores {folder}: no {split}/LANGUAGE.{split} in it, for instance {split}/eng.{split}")
    return files


def parse_directions(text, files):
    """[(source code, target code)] of --directions, in the order given, each once, without a language to itself."""
    chosen = {}
    for pattern in (part.strip() for part in text.split(",")):
        sides = ["*", "*"] if pattern == "all" else pattern.split("-")
        if len(sides) != 2 or not all(sides):
            raise InputError(f"--directions {pattern!r}: expected a-b, a-*, *-b, *-* or all, for instance en-fr")
        codes = []
        for side in sides:
            if side == "*":
                codes.append(list(files))
                continue
            try:
                language = resolve(side)
            except InputError as error:
                raise InputError(f"--directions {pattern}: {error}") from None
            if language.code not in files:
                folder = next(iter(files.values())).parent
                raise InputError(
                    f"--directions {pattern}: no file for {language.code} ({language.name}) in {folder}, found "
                    f"{', '.join(sorted(files)[:10])}{' …' if len(files) > 10 else ''}; add it or leave it out"
                )
            codes.append([language.code])
        chosen.update(dict.fromkeys((a, b) for a, b in itertools.product(*codes) if a != b))
    if not chosen:
        raise InputError(f"--directions {text}: no direction between two languages; give for instance en-fr")
    return list(chosen)


def read_lines(path):
    """The lines of a text file. Only \\n and \\r\\n end a line: a translation may hold U+2028 and the like."""
    lines = []
    for block in read_blocks(path):
        for number, line in enumerate(block.lines, block.first_line):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{path} line {number}: not valid UTF-8 ({error}); save the file as UTF-8") from None
    if not lines:
        raise InputError(f"{path}: empty, expected a sentence a line; check the file")
    return lines


# Translation


def generate(args):
    files = flores_files(args.flores, args.split)
    directions = parse_directions(args.directions, files)
    check_alignment({code: files[code] for direction in directions for code in direction})
    sources = {code: read_lines(files[code])[: args.limit] for code, _ in directions}
    for code, lines in sources.items():
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise InputError(f"{files[code]} line {number}: empty, expected a sentence; mend the file")
    tokenizer = load_tokenizer(args.hf_model)
    model_made_of = model_files(args.hf_model)
    choose_device(args)

    settings = ("split", "limit", "num_beams", "max_new_tokens", "prompt", "dtype")
    record = {
        "settings": {
            "model": model_made_of,
            "tokenizer": tokenizer.manifest(),
            **{name: getattr(args, name) for name in settings},
        },
        "sources": {code: fingerprint(files[code])["blake2b"] for code in sources},
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "versions": versions("torch", "transformers", "safetensors", "sentencepiece", "gigatoken"),
    }
    check_record(args.output, record)
    pending = [direction for direction in directions if not hypotheses_file(args.output, direction).is_file()]
    if not pending:
        print(f"{args.output}: all {len(directions)} directions translated, nothing to do")
        return

    model, generation = load_model(args, tokenizer)
    write_json(args.output / "generate.json", record)  # before the first hypotheses: none without their record
    progress = Progress(sum(len(sources[source]) for source, _ in pending), " sentences", "translating", scale=False)
    for group in groups(pending, sources, GROUP_BATCHES * args.batch_size):
        translate_group(group, sources, model, generation, tokenizer, args, progress)
    progress.close()
    print(f"{args.output}: {len(pending)} directions translated, {len(directions) - len(pending)} were there before")


def choose_device(args):
    """Put what auto stands for on this machine into --device and --dtype."""
    if args.device != "cpu":
        import torch

        cuda = torch.cuda.is_available()
        if args.device == "cuda" and not cuda:
            raise InputError("--device cuda: torch sees no GPU; run on a machine with one or give --device cpu")
        args.device = "cuda" if cuda else "cpu"
    if args.dtype == "auto":
        args.dtype = "bfloat16" if args.device == "cuda" else "float32"


def check_alignment(files):
    """Raise InputError if two of the files differ in length: found now, not after hours of translation."""
    lengths = {path: count_lines(path) for path in files.values()}
    (first, expected), *others = lengths.items()
    for path, length in others:
        if length != expected:
            raise InputError(f"{first} has {expected} lines, {path} {length}; they must be translations of each other")


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


def check_record(output, record):
    """Raise InputError if OUTPUT holds hypotheses that were made otherwise: they would be taken for these.

    Directions, device and batch size may differ: they do not change what a sentence is translated into. Sources of
    earlier runs with other directions are added to the record.
    """
    path = output / "generate.json"
    if not any((output / "hypotheses").glob("*.txt")):
        return
    remedy = "choose another --output or remove this one"
    if not path.is_file():
        raise InputError(f"--output {output}: hypotheses without {path}, so of unknown origin; {remedy}")
    old = read_record(path, "settings")
    for name, value in record["settings"].items():
        found = old.get(name)
        if found != value:
            what = "another one" if name in ("model", "tokenizer") else f"{found!r}, now {value!r}"
            raise InputError(f"--output {output}: made with {name.replace('_', '-')} {what}; {remedy}")
    for code, found in read_record(path, "sources").items():
        if record["sources"].setdefault(code, found) != found:
            raise InputError(f"--output {output}: made from another source file for {code}; {remedy}")


def read_record(path, key):
    """What a record of this script, generate.json or score.json, says under `key`."""
    record = read_json(path, "--output")
    if not isinstance(record, dict) or not isinstance(record.get(key), dict):
        raise InputError(f"{path}: says nothing of {key}, so it is not this script's record; move it away")
    return record[key]


def versions(*packages):
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def hypotheses_file(output, direction):
    return output / "hypotheses" / f"{'-'.join(direction)}.txt"


def load_model(args, tokenizer):
    """(model, GenerationConfig): from safetensors only, and nothing of the folder is executed."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            args.hf_model,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, args.dtype),
            output_loading_info=True,
        )
        model = model.to(args.device).eval()
    except Exception as error:  # every fault of a folder from elsewhere has its own type
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"--hf-model {args.hf_model}: does not load ({reason}); check the folder") from None
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise InputError(
            f"--hf-model {args.hf_model}: {len(missing)} weights missing, the first {missing[0]}; add them"
        )
    size = model.get_input_embeddings().num_embeddings
    if size < tokenizer.vocab_size:
        raise InputError(
            f"--hf-model {args.hf_model}: {size} embeddings, its tokenizer.model has {tokenizer.vocab_size} tokens; "
            "put the tokenizer there that the model was trained with"
        )
    generation = transformers.GenerationConfig(
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
        do_sample=False,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
    )
    model.generation_config = generation  # the folder's own would fill what is unset here: temperature, penalties
    return model, generation


def groups(directions, sources, sentences):
    """Cut the directions into lists of at least so many sentences (the last may have fewer)."""
    group, size = [], 0
    for direction in directions:
        group.append(direction)
        size += len(sources[direction[0]])
        if size >= sentences:
            yield group
            group, size = [], 0
    if group:
        yield group


def translate_group(group, sources, model, generation, tokenizer, args, progress):
    """Translate and write some directions. Their sentences share batches: many directions may have few each."""
    sentences = [
        (direction, number, source_ids(tokenizer, text, direction, args.prompt))
        for direction in group
        for number, text in enumerate(sources[direction[0]])
    ]
    sentences.sort(key=lambda sentence: -len(sentence[2]))  # longest first: too large a batch fails at once
    hypotheses = {direction: [""] * len(sources[direction[0]]) for direction in group}
    for start in range(0, len(sentences), args.batch_size):
        batch = sentences[start : start + args.batch_size]
        texts = translate_batch([ids for _, _, ids in batch], model, generation, tokenizer)
        for (direction, number, _), text in zip(batch, texts, strict=True):
            hypotheses[direction][number] = text
        progress.update(len(batch))
    for direction, lines in hypotheses.items():
        write_text(hypotheses_file(args.output, direction), "".join(f"{line}\n" for line in lines))


def source_ids(tokenizer, text, direction, prompt):
    """The ids that ask for the translation of a sentence: in a prompt of PROMPTS, or for "none" the bare source, which
    is what precedes the target in a connected pair of pre-training."""
    if prompt != "none":
        text = translation_prompt(text, *(resolve(code).name for code in direction), prompt)
    return prompt_ids(tokenizer, text)


def translate_batch(prompts, model, generation, tokenizer):
    """The hypotheses of prompts given as lists of ids."""
    import torch

    width = max(map(len, prompts))
    ids_bs = torch.full((len(prompts), width), tokenizer.eos_id)
    mask_bs = torch.zeros_like(ids_bs)
    for row, prompt in enumerate(prompts):  # padded on the left: the translation follows the prompt's last token
        ids_bs[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_bs[row, width - len(prompt) :] = 1
    try:
        with torch.inference_mode():
            output = model.generate(
                ids_bs.to(model.device), attention_mask=mask_bs.to(model.device), generation_config=generation
            )
    except torch.OutOfMemoryError:
        raise InputError(
            f"--batch-size: {len(prompts)} sentences of up to {width} tokens do not fit into the GPU's memory with "
            f"--num-beams {generation.num_beams}; give a smaller one and run again to go on"
        ) from None
    return [hypothesis(tokenizer, row[width:]) for row in output.tolist()]


def hypothesis(tokenizer, ids):
    """The text of generated ids up to EOS, on one line. Nothing else is cut: a colon or ### may be translation."""
    if tokenizer.eos_id in ids:
        ids = ids[: ids.index(tokenizer.eos_id)]
    text = tokenizer.decode([i for i in ids if i < tokenizer.vocab_size])  # embeddings may be padded beyond it
    return re.sub(r"[\r\n]+", " ", text.strip())


# Scores


def same_length(hypotheses, hypothesis_path, references, reference_path):
    if len(hypotheses) != len(references):
        hint = f" (is --limit {len(hypotheses)} meant?)" if len(hypotheses) < len(references) else ""
        raise InputError(
            f"{hypothesis_path} has {len(hypotheses)} lines, {reference_path} {len(references)}; a line of one must "
            f"translate the same line of the other{hint}"
        )


def score_target(job, limit, spbleu_model):
    """The rows of some directions into one language. job: (reference file, [(source, target, hypotheses file)])."""
    reference_path, directions = job
    references = read_lines(reference_path)[:limit]
    metrics = reference_metrics([references], spbleu_model)
    rows = []
    for source, target, path in directions:
        lines = read_lines(path)
        same_length(lines, path, references, reference_path)
        rows += [{"src": source, "tgt": target, **row} for row in score_lines(metrics, lines)]
    return rows


def score(args):
    take_settings(args)
    files = flores_files(args.flores, args.split)
    hypotheses = hypotheses_files(args.output)
    for _, target in hypotheses:
        if target not in files:
            raise InputError(
                f"--flores {args.flores}: no {args.split} file for {target}, which --output translates into"
            )
    tokenizer_name, tokenizer_digest = spbleu_tokenizer(args.spbleu_model)[1:]  # loaded before the processes start

    # What the rows of a direction come from: those that come from the same as before are kept.
    common = [args.limit, tokenizer_name, tokenizer_digest, version("sacrebleu")]
    references = {target: fingerprint(files[target])["blake2b"] for _, target in hypotheses}
    made_from = {
        "-".join(direction): [fingerprint(path)["blake2b"], references[direction[1]], *common]
        for direction, path in hypotheses.items()
    }
    rows = kept_rows(args.output, made_from)
    done = {(row["src"], row["tgt"]) for row in rows}
    jobs = score_jobs({direction: path for direction, path in hypotheses.items() if direction not in done}, files)
    progress = Progress(len(hypotheses) - len(done), " directions", "scoring", scale=False)
    function = functools.partial(score_target, limit=args.limit, spbleu_model=args.spbleu_model)
    for found in map_blocks(function, jobs, max(1, min(args.workers, len(jobs)))):
        rows += found
        progress.update(len(found) // len(METRICS))
    progress.close()

    rows.sort(key=lambda row: (row["src"], row["tgt"], METRICS.index(row["metric"])))
    arguments = {
        "flores": str(args.flores.resolve()),
        "split": args.split,
        "limit": args.limit,
        "spbleu_model": args.spbleu_model and fingerprint(args.spbleu_model),
    }
    record = {"arguments": arguments, "made_from": made_from, "versions": versions("sacrebleu", "sentencepiece")}
    with replacing(args.output / "score.json", args.output / "scores.jsonl") as (record_file, scores_file):
        record_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        scores_file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print_averages({str(args.output): rows})


def take_settings(args):
    """Fill --split and --limit from generate's record where there is one; raise InputError where they contradict it."""
    record = args.output / "generate.json"
    made = read_record(record, "settings") if record.is_file() else {}
    for name in ("split", "limit"):
        given = getattr(args, name)
        if made and given not in (None, made.get(name)):
            raise InputError(f"--{name} {given}: {record} says {made.get(name)}; leave the option out")
        setattr(args, name, made.get(name, given))
    args.split = args.split or "devtest"


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


def kept_rows(output, made_from):
    """The rows of an earlier run that would come out the same."""
    if not (output / "score.json").is_file() or not (output / "scores.jsonl").is_file():
        return []
    try:
        old, rows = read_record(output / "score.json", "made_from"), read_scores(output)
    except InputError:  # damaged: all is scored again
        return []
    same = {key for key, value in made_from.items() if old.get(key) == value}
    return [row for row in rows if f"{row['src']}-{row['tgt']}" in same]


def score_jobs(hypotheses, files):
    """Jobs for score_target: a language's references are shared by up to SCORE_DIRECTIONS directions."""
    targets = {}
    for (source, target), path in hypotheses.items():
        targets.setdefault(target, []).append((source, target, path))
    return [
        (files[target], directions[i : i + SCORE_DIRECTIONS])
        for target, directions in targets.items()
        for i in range(0, len(directions), SCORE_DIRECTIONS)
    ]


def print_averages(systems):
    """A short table of {name: rows}."""
    print(f"{'mean':<12}{'directions':>10}" + "".join(f"{metric:>9}" for metric in METRICS))
    for name, rows in systems.items():
        print(name)
        for group, means in averages(rows).items():
            n = max(count for _, count in means.values())
            print(f"{group:<12}{n:>10,}" + "".join(f"{mean:>9.2f}" for mean, _ in means.values()))


def score_files(args):
    hypotheses = read_lines(args.hypothesis)
    references = [read_lines(path) for path in args.reference]
    for path, lines in zip(args.reference, references, strict=True):
        same_length(hypotheses, args.hypothesis, lines, path)
    metrics = reference_metrics(references, args.spbleu_model)
    metrics["BLEU"] = language_bleu(references, args.tgt_lang)
    for row in score_lines(metrics, hypotheses):
        print(json.dumps({"tgt": args.tgt_lang.code, **row}, ensure_ascii=False))


# Report


def report(args):
    names = [path.name for path in args.output]
    if len(set(names)) < len(names) or not all(names):
        names = [str(path) for path in args.output]
    systems = {}
    for name, output in zip(names, args.output, strict=True):
        systems[name] = rows = read_scores(output)
        scored = {(row["src"], row["tgt"]) for row in rows}
        if (output / "hypotheses").is_dir():
            for direction, path in hypotheses_files(output).items():
                if direction not in scored:
                    raise InputError(f"{output}/scores.jsonl: lacks {path.stem}; run evaluate.py score again")
    shown = samples(args, systems)  # the last that may fail; nothing is written before
    drawn = {}
    for output, (name, rows) in zip(args.output, systems.items(), strict=True):
        matrix = direction_matrix(rows, "spBLEU")
        drawn[name] = matrix_png(matrix)
        write_text(output / "matrix_spBLEU.csv", matrix_csv(matrix))
        with replacing(output / "matrix_spBLEU.png") as partial:
            partial.write_bytes(drawn[name])
    path = Path(args.html or args.output[0] / "report.html")
    write_text(path, html_report(systems, drawn, shown))
    print_averages(systems)
    print(f"{path}: written, with matrix_spBLEU.csv and .png in each --output")


def samples(args, systems, directions=6, sentences=10):
    """[(source code, target code, [(line number, (source, hypothesis of each system …, reference))])], from the best
    direction of the first system to its worst; [] where scores came without their hypotheses."""
    record = args.output[0] / "score.json"
    if not record.is_file() or not all((output / "hypotheses").is_dir() for output in args.output):
        return []
    made = read_record(record, "arguments")
    flores = args.flores or Path(made["flores"])
    if not flores.is_dir():
        raise InputError(f"{flores}, which score read, is not there any more; give the folder by --flores")
    files = flores_files(flores, made["split"])
    hypotheses = {name: hypotheses_files(output) for name, output in zip(systems, args.output, strict=True)}
    scores = {
        (row["src"], row["tgt"]): row["score"] for row in next(iter(systems.values())) if row["metric"] == "spBLEU"
    }
    shared = [
        direction
        for direction in sorted(scores, key=lambda direction: (-scores[direction], direction))
        if all(direction in found for found in hypotheses.values()) and set(direction) <= set(files)
    ]
    chosen = []
    for source, target in evenly(shared, directions):
        paths = [files[source], *(found[source, target] for found in hypotheses.values()), files[target]]
        lines = zip(*map(read_lines, paths), strict=False)  # after --limit the hypotheses are fewer
        chosen.append((source, target, evenly(list(enumerate(lines, 1)), sentences)))
    return chosen


def evenly(items, count):
    """At most `count` of the items, from the first to the last at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def main():
    args = get_args()
    {"generate": generate, "score": score, "report": report, "score-files": score_files}[args.command](args)


if __name__ == "__main__":
    run(main)
