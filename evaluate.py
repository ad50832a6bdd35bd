"""Translate a test set in any directions, score the translations, and show the scores (LLaMAX, sections 3 and 4).

    python evaluate.py generate --hf-model out/hf --flores flores101 --directions 'en-*,*-en' --output out/flores
    python evaluate.py score    --output out/flores --spbleu-model sacrebleu_tokenizer_spm.model
    python evaluate.py report   --output out/flores
    python evaluate.py report   --output out/flores out/baseline     (systems side by side)
    python evaluate.py compare  --output out/flores out/baseline     (paired bootstrap, direction by direction)
    python evaluate.py score-files --hypothesis hyp.de --reference ref.de --tgt-lang de

generate writes OUTPUT/hypotheses/SRC-TGT.txt, a line a sentence, and OUTPUT/generate.json, which says how they were
made; killed and run again, it goes on where it was. The work is shared among GPUs by torchrun or srun, and among the
tasks of a Slurm job array by --shard (slurm/evaluate.sh); what comes out does not depend on it. score writes
OUTPUT/scores.jsonl, a line a direction and metric; report matrices, pictures and report.html.
"""

import functools
import json
import os
from pathlib import Path

from llamax import scoring
from llamax.files import (
    InputError,
    Parser,
    existing_file,
    existing_folder,
    fingerprint,
    replacing,
    run,
    write_text,
)
from llamax.generation import Search, Sentence, cut_batches, open_model, translate_batch
from llamax.hypotheses import (
    append_partial,
    claim,
    finish,
    hypotheses_file,
    hypotheses_files,
    is_complete,
    lines_digest,
    model_files,
    read_partial,
    read_record,
    sources_before,
    versions,
)
from llamax.languages import resolve
from llamax.offtarget import Identifier
from llamax.prompts import TRANSLATION_PROMPTS, few_shot_examples, sentence_seeds
from llamax.ranks import ranks
from llamax.records import Progress, map_blocks
from llamax.report import read_system, write_report
from llamax.report_tables import averages
from llamax.scores import ORDER, Scorer, same_length
from llamax.shards import parse_shard
from llamax.testsets import KINDS, add_test_set_arguments, chosen_test_set, make_test_set, open_test_set, read_lines

MAX_BATCH_TOKENS = 131072
GROUP_SENTENCES = 1000  # translated together, so that sentences of a length share batches; whole directions
MODEL_FILES = ("spbleu_model", "spbleu200_model", "lid_model")


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="generate|score|compare|report|score-files")

    def command(name, text):
        return commands.add_parser(name, help=text, description=text).add_argument

    spbleu = "spBLEU's SentencePiece file (default: sacrebleu's flores101, which it downloads once)"
    spbleu200 = "the same for spBLEU200 (default: sacrebleu's flores200)"

    add = command("generate", "translate with a Hugging Face model")
    add("--hf-model", required=True, metavar="DIR", help="config.json, *.safetensors and tokenizer; also M2M-100, "
        "NLLB-200, mBART-50, MADLAD-400")  # fmt: skip
    add_test_set_arguments(add)
    add(
        "--directions", required=True, help="comma-separated a-b, a-*, *-b, all, or wmt23; * is every language there is"
    )
    add("--output", required=True, metavar="DIR", help="writes DIR/hypotheses/SRC-TGT.txt and DIR/generate.json")
    add("--limit", type=int, help="only the first so many sentences of each direction (default: all)")
    add("--prompt", choices=(*TRANSLATION_PROMPTS, "none"), help="none: the bare source (default: the prompt that the "
        "model was tuned with, as its folder's llamax.json says, else llamax)")  # fmt: skip
    add("--shots", type=int, default=0, help="examples in the prompt, drawn from dev, for prompts that take them "
        "(default %(default)s)")  # fmt: skip
    add("--examples", metavar="DIR", help="Flores folder whose dev has the examples (default: --flores)")
    add("--pivot", metavar="CODE", help="translate into this language first and from it into the target")
    add("--pivot-output", metavar="DIR", help="an --output with translations into the pivot, used and completed "
        "(default: OUTPUT/pivot)")  # fmt: skip
    add("--num-beams", type=int, default=4, help="1 is greedy search (default %(default)s)")
    add("--max-new-tokens", type=int, default=256, help="tokens a translation (default %(default)s)")
    add("--do-sample", action="store_true", help="draw each token; needs --num-beams 1")
    add("--temperature", type=float, default=1.0, help="of --do-sample (default %(default)s)")
    add("--top-p", type=float, default=1.0, help="of --do-sample (default %(default)s)")
    add("--seed", type=int, default=42, help="of --do-sample and --shots (default %(default)s, EMMA-500's)")
    add("--max-batch-tokens", type=int, default=MAX_BATCH_TOKENS, help="positions of a batch: sentences × beams × "
        "(longest prompt + --max-new-tokens). Half, where memory runs out; 64 times for vllm, which cuts its own "
        "(default %(default)s)")  # fmt: skip
    add("--shard", metavar="I/N", help="only part I (from 0) of N; slurm/N: I is the array task's")
    add("--engine", choices=("transformers", "vllm"), default="transformers", help="vllm where it is installed "
        "(default %(default)s)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: bfloat16 on a GPU")

    add = command("score", "score the hypotheses of an --output folder")
    add("--output", required=True, metavar="DIR", help="reads DIR/hypotheses, writes DIR/scores.jsonl")
    add_test_set_arguments(add, required=False)
    add("--limit", type=int, help="only the first so many lines of each reference (default: generate's, else all)")
    add("--metrics", nargs="+", choices=scoring.METRICS, default=list(scoring.DEFAULT_METRICS), metavar="METRIC",
        help=f"of {', '.join(scoring.METRICS)} (default: {' '.join(scoring.DEFAULT_METRICS)})")  # fmt: skip
    add("--spbleu-model", metavar="FILE", help=spbleu)
    add("--spbleu200-model", metavar="FILE", help=spbleu200)
    add("--lid-model", metavar="FILE", help="fastText model: percent of lines in the source and the target language")
    add("--comet-python", metavar="FILE", help="Python of an environment that has unbabel-comet: COMET is scored, too")
    add("--comet-model", metavar="FILE", default="Unbabel/wmt22-comet-da", help="its checkpoints/model.ckpt, or a "
        "name on the hub (default %(default)s)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")

    add = command("compare", "test whether two systems differ, by paired bootstrap")
    add(
        "--output", required=True, nargs=2, metavar="DIR", help="two folders with hypotheses; the first is the baseline"
    )
    add_test_set_arguments(add, required=False)
    add("--limit", type=int, help="as for score")
    add("--metrics", nargs="+", choices=scoring.METRICS, default=["spBLEU"], metavar="METRIC",
        help="as for score (default: spBLEU)")  # fmt: skip
    add("--spbleu-model", metavar="FILE", help=spbleu)
    add("--spbleu200-model", metavar="FILE", help=spbleu200)
    add("--samples", type=int, default=1000, help="bootstrap samples (default %(default)s)")
    add("--seed", type=int, default=12345, help="(default %(default)s, sacrebleu's)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")

    add = command("report", "draw matrices and write an HTML report")
    add("--output", required=True, nargs="+", metavar="DIR", help="scored folders, or tables as LLaMAX publishes them; "
        "several stand side by side")  # fmt: skip
    add_test_set_arguments(add, required=False)
    add("--html", metavar="FILE", help="(default: report.html in the first --output)")
    add("--seen", nargs="+", metavar="CODE", help="languages seen in training (default: the paper's 102)")
    add("--threshold", type=float, default=10.0, help="spBLEU above which directions are counted (default %(default)s)")

    add = command("score-files", "score one file of any origin")
    add("--hypothesis", required=True, metavar="FILE", help="a translation a line")
    add("--reference", required=True, nargs="+", metavar="FILE", help="line-aligned with it; several are allowed")
    add("--tgt-lang", required=True, metavar="CODE", help="language code (llamax/languages.tsv); chooses BLEU's tokens")
    add("--metrics", nargs="+", choices=scoring.METRICS, default=["spBLEU", "chrF++", "BLEU"], metavar="METRIC",
        help="as for score (default: spBLEU chrF++ BLEU)")  # fmt: skip
    add("--spbleu-model", metavar="FILE", help=spbleu)
    add("--spbleu200-model", metavar="FILE", help=spbleu200)

    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args):
    """Raise one InputError with every number out of range, then one for the first path that is missing."""
    at_least = {"limit": 1, "num_beams": 1, "max_new_tokens": 1, "max_batch_tokens": 1, "shots": 0, "samples": 1,
                "workers": 1}  # fmt: skip
    problems = [
        f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {least}"
        for name, least in at_least.items()
        if getattr(args, name, None) is not None and getattr(args, name) < least
    ]
    if args.command == "generate":
        if args.temperature <= 0:
            problems.append(f"--temperature {args.temperature}: expected more than 0")
        if not 0 < args.top_p <= 1:
            problems.append(f"--top-p {args.top_p}: expected more than 0 and at most 1")
        if args.do_sample and args.num_beams > 1:
            problems.append(f"--num-beams {args.num_beams}: with --do-sample expected 1")
    if problems:
        raise InputError("; ".join(problems))
    for name, check in (
        ("hf_model", existing_folder),
        ("examples", existing_folder),
        ("spbleu_model", existing_file),
        ("spbleu200_model", existing_file),
        ("lid_model", existing_file),
        ("hypothesis", existing_file),
    ):
        if getattr(args, name, None) is not None:
            setattr(args, name, check(getattr(args, name), f"--{name.replace('_', '-')}"))
    if args.command == "generate":
        args.output = Path(args.output)
        args.pivot_output = Path(args.pivot_output or args.output / "pivot")
        args.pivot = args.pivot and resolve(args.pivot).code
    elif args.command == "score-files":
        args.reference = [existing_file(path, "--reference") for path in args.reference]
        args.tgt_lang = resolve(args.tgt_lang)
    elif args.command == "score":
        args.output = existing_folder(args.output, "--output")
    else:
        args.output = list(dict.fromkeys(existing_folder(path, "--output") for path in args.output))
        if args.command == "compare" and len(args.output) < 2:
            raise InputError(f"--output {args.output[0]}: given twice; name two systems")


# Translation


def generate(args):
    tests = open_test_set(args)
    directions = tests.directions(args.directions)
    choose_device(args)
    search = Search(args.num_beams, args.max_new_tokens, args.do_sample, args.temperature, args.top_p, args.seed)
    model = open_model(args.hf_model, args.prompt, few_shot(args), search, args.engine, args.device, args.dtype)

    settings = ("limit", "num_beams", "max_new_tokens", "dtype", "shots", "do_sample", "engine")
    if args.do_sample:
        settings += ("temperature", "top_p", "seed")
    elif args.shots:
        settings += ("seed",)
    record = {
        "settings": {
            "model": model_files(args.hf_model),
            "tokenizer": model.manifest(),
            "prompt": model.prompt,
            "test_set": tests.name,
            "split": tests.split,
            **{name: getattr(args, name) for name in settings},
        },
        "arguments": {
            **{name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
            tests.kind: str(Path(tests.path).resolve()),
        },
        "versions": versions(*model.packages),
    }

    def source(direction):
        return tests.source_key(direction), tests.source(direction)[: args.limit]

    if not args.pivot:
        return translate_all(directions, source, model, record, args.output, args)

    directions = [direction for direction in directions if args.pivot not in direction]
    if not directions:
        raise InputError(f"--pivot {args.pivot}: none of --directions {args.directions} is without it; leave it out")
    if any(tests.source_key(direction) != tests.source_key((direction[0], args.pivot)) for direction in directions):
        raise InputError(
            f"--pivot {args.pivot}: directions of --{tests.kind} {tests.path} have sentences of their own; choose a "
            "test set that has the same in all languages, such as --flores"
        )
    into = list(dict.fromkeys((first, args.pivot) for first, _ in directions))
    missing = [direction for direction in into if not is_complete(args.pivot_output, direction)]
    if missing and task_of(args)[1] > 1:
        raise InputError(
            f"--pivot-output {args.pivot_output}: no {'-'.join(missing[0])} yet, which several tasks need; translate "
            f"--directions '*-{args.pivot}' into it first"
        )
    model.require([(args.pivot, target) for _, target in directions])  # now, not after the first translations
    through = {**record, "settings": {**record["settings"], "pivot": args.pivot}}
    sources_before(args.output, through["settings"])  # fails now, not after the first half of the work
    translate_all(into, source, model, record, args.pivot_output, args)

    def pivot(direction):  # a line that came out empty stays empty
        path = hypotheses_file(args.pivot_output, (direction[0], args.pivot))
        return path.stem, read_lines(path)

    translate_all(directions, pivot, model, through, args.output, args, asked_from=args.pivot)


def few_shot(args):
    """(direction, sentences) -> examples of --shots for each sentence, or None. They are of dev, which is for that."""
    if not args.shots:
        return None
    if not (args.examples or args.flores):
        raise InputError("--shots: examples come from Flores' dev; give its folder by --examples")
    dev = make_test_set("flores", args.examples or args.flores, "dev")

    def examples(direction, count):
        dev.directions("-".join(direction))  # a clear error where it has no such languages
        sources, targets = dev.source(direction), dev.references(direction)[0]
        return [few_shot_examples(sources, targets, args.shots, seed) for seed in sentence_seeds(count, args.seed)]

    return examples


def choose_device(args):
    """Put what auto stands for on this machine into --device and --dtype. Of several GPUs a process takes its own."""
    if args.device != "cpu":
        import torch

        cuda = torch.cuda.is_available()
        if args.device == "cuda" and not cuda:
            raise InputError("--device cuda: torch sees no GPU; run on a machine with one or give --device cpu")
        if cuda and args.engine != "vllm":  # which starts processes of its own
            torch.cuda.set_device(ranks()[2] % torch.cuda.device_count())
        args.device = "cuda" if cuda else "cpu"
    if args.dtype == "auto":
        args.dtype = "bfloat16" if args.device == "cuda" else "float32"


def task_of(args):
    """(number, count) of this process among those that share the work: array tasks, and the processes of each."""
    number, count = parse_shard(args.shard) if args.shard else (0, 1)
    rank, world_size, _ = ranks()
    return number * world_size + rank, count * world_size


def translate_all(directions, source, model, record, output, args, asked_from=None):
    """Translate this task's share of the directions into an --output folder.

    Args:
        source: direction -> (key, lines), where the same key means the same lines.
        record: what generate.json says, but for the sources.
        asked_from: the language of the lines, where it is not the direction's first.
    """
    lengths, digests = {}, {}
    for direction in directions:
        key, lines = source(direction)
        lengths[direction] = len(lines)
        if key not in digests:
            digests[key] = lines_digest(lines)
    task, tasks = task_of(args)
    mine = list(groups(lengths))[task::tasks]
    pending = [group for group in mine if not all(is_complete(output, direction) for direction in group)]
    model.require([(asked_from or first, target) for group in pending for first, target in group])
    claim(output, {**record, "sources": digests})
    what = f"part {task} of {tasks} of {len(directions)} directions" if tasks > 1 else f"{len(directions)} directions"
    if not pending:
        print(f"{output}: {what} translated, nothing to do")
        return
    model.load()
    total = sum(lengths[direction] for group in pending for direction in group)
    progress = Progress(total, " sentences", "translating", scale=False)
    count = 0
    for group in pending:
        count += translate_group(group, source, model, output, args.max_batch_tokens, asked_from, progress)
    progress.close()
    print(f"{output}: {what} translated, {count:,} sentences in this run")


def groups(lengths):
    """Cut {direction: sentences} into lists of directions with at least GROUP_SENTENCES (the last may have fewer)."""
    group, size = [], 0
    for direction, length in lengths.items():
        group.append(direction)
        size += length
        if size >= GROUP_SENTENCES:
            yield group
            group, size = [], 0
    if group:
        yield group


def translate_group(group, source, model, output, max_batch_tokens, asked_from, progress):
    """Translate some directions and write them when all are complete. Their sentences share batches, and these are the
    same when a killed run goes on: what is translated once more comes out as it would have. Stragglers of all batches
    share some at the end. Returns how many sentences were translated."""
    sentences, found, left = [], {}, {}
    for direction in group:
        key, lines = source(direction)
        if is_complete(output, direction):
            found[direction], left[direction] = dict(enumerate(read_lines(hypotheses_file(output, direction)))), set()
        else:
            found[direction], left[direction] = read_partial(output, direction)
        encoded = model.encode((asked_from or direction[0], direction[1]), key, lines)
        for number, (line, ids) in enumerate(zip(lines, encoded, strict=True)):
            if line.strip():
                sentences.append(Sentence(direction, number, ids))
            else:  # of a pivot translation that came out empty
                found[direction][number] = ""

    def known(sentence):
        return sentence.number in found[sentence.direction]

    def is_left(sentence):
        return sentence.number in left[sentence.direction]

    before = sum(map(len, found.values()))
    progress.update(before)
    for patient in (False, True):
        for batch in cut_batches(filter(is_left, sentences) if patient else sentences, max_batch_tokens, model):
            if all(known(s) or (is_left(s) and not patient) for s in batch):
                continue
            texts = translate_batch(model, batch, patient)
            append_partial(output, batch, texts)
            for sentence, text in zip(batch, texts, strict=True):
                if text is None:
                    left[sentence.direction].add(sentence.number)
                else:
                    progress.update(not known(sentence))
                    found[sentence.direction][sentence.number] = text
    for direction in group:
        if not is_complete(output, direction):
            finish(output, direction, [found[direction][number] for number in range(len(source(direction)[1]))])
    return sum(map(len, found.values())) - before


# Scores


def open_scored_tests(args, outputs):
    """The test set of the options, or else the one whose translations are in the first of the folders; --split and
    --limit as there. Raises InputError where they contradict what generate says."""
    records = [path for output in outputs if (path := output / "generate.json").is_file()]
    for path in records:
        made, arguments = read_record(path, "settings"), read_record(path, "arguments")
        for name in ("split", "limit"):
            given = getattr(args, name)
            if given != made.get(name) and path != records[0]:
                raise InputError(f"{path}: {name} {made.get(name)}, of {records[0]} {given}; translate the same lines")
            if given not in (None, made.get(name)):
                raise InputError(f"--{name} {given}: {path} says {made.get(name)}; leave the option out")
            setattr(args, name, made.get(name))
        if not chosen_test_set(args):
            for kind in KINDS:
                setattr(args, kind, arguments.get(kind))
    return open_test_set(args)


def hypotheses_of(tests, output, limit):
    """{direction: file} of an --output folder, or InputError where one is no translation of the test set."""
    hypotheses = hypotheses_files(output)
    for direction, path in hypotheses.items():
        if not tests.has(direction):
            raise InputError(f"{path}: --{tests.kind} {tests.path} has no such direction; move the file away")
    path = output / "generate.json"
    if path.is_file() and "pivot" not in read_record(path, "settings"):
        made = read_record(path, "sources")
        for key, direction in {tests.source_key(direction): direction for direction in hypotheses}.items():
            if key in made and made[key] != lines_digest(tests.source(direction)[:limit]):
                raise InputError(
                    f"--output {output}: made from another source text for {key} than --{tests.kind} {tests.path} has; "
                    "give the test set that was translated"
                )
    return hypotheses


def metric_models(args):
    return {"spBLEU": args.spbleu_model, "spBLEU200": args.spbleu200_model}


def score(args):
    tests = open_scored_tests(args, [args.output])
    hypotheses = hypotheses_of(tests, args.output, args.limit)
    identifier = Identifier(args.lid_model) if args.lid_model else None
    comet = (args.comet_python, args.comet_model) if args.comet_python else None
    scorer = Scorer(tests, args.limit, args.metrics, metric_models(args), identifier, comet)
    rows, made_from, jobs = scorer.plan(hypotheses, args.output)
    caveats = scorer.recognise(hypotheses)
    rows += scorer.score_with_comet(jobs)  # first: another environment is what is likeliest to fail
    progress = Progress(sum(len(some) for _, some in jobs), " directions", "scoring", scale=False)
    workers = max(1, min(args.workers, len(jobs)))
    for (_, some), found in zip(jobs, map_blocks(scorer.score, jobs, workers), strict=True):
        rows += found
        progress.update(len(some))
    progress.close()
    rows.sort(key=lambda row: (row["src"], row["tgt"], ORDER.index(row["metric"])))
    record = {
        "arguments": {
            **{kind: getattr(args, kind) and str(Path(getattr(args, kind)).resolve()) for kind in KINDS},
            **{name: getattr(args, name) for name in ("split", "limit", "metrics")},
            **{name: getattr(args, name) and fingerprint(getattr(args, name)) for name in MODEL_FILES},
        },
        "made_from": made_from,
        "caveats": caveats,
        "versions": versions("sacrebleu", "sentencepiece"),
    }
    with replacing(args.output / "score.json", args.output / "scores.jsonl") as (record_file, scores_file):
        record_file.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        scores_file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print_averages({str(args.output): rows})
    for line in caveats:
        print(f"off-target rates: {line}")


def print_averages(systems):
    """A short table of {name: rows}, of those metrics that all have."""
    metrics = [
        m for m in ("spBLEU", "chrF++", "COMET") if all(any(r["metric"] == m for r in s) for s in systems.values())
    ]
    print(f"{'mean':<12}{'directions':>10}" + "".join(f"{metric:>9}" for metric in metrics))
    for name, rows in systems.items():
        print(name)
        for group, means in averages(rows).items():
            n = max(count for _, count in means.values())
            cells = [f"{means[metric][0]:>9.2f}" if metric in means else " " * 9 for metric in metrics]
            print(f"{group:<12}{n:>10,}" + "".join(cells))


def compare(args):
    """Paired bootstrap of every direction that both systems have."""
    tests = open_scored_tests(args, args.output)
    first, second = (hypotheses_of(tests, output, args.limit) for output in args.output)
    directions = sorted(set(first) & set(second), key=lambda direction: direction[::-1])
    if not directions:
        raise InputError(f"--output {args.output[0]} and {args.output[1]}: no direction in both; translate the same")
    scorer = Scorer(tests, args.limit, args.metrics, metric_models(args))
    jobs = [(direction, (first[direction], second[direction])) for direction in directions]
    function = functools.partial(scorer.compare, samples=args.samples, seed=args.seed)
    progress, rows = Progress(len(jobs), " directions", "comparing", scale=False), []
    for found in map_blocks(function, jobs, max(1, min(args.workers, len(jobs)))):
        rows += found
        progress.update(1)
    progress.close()
    path = args.output[0] / f"compare-{args.output[1].resolve().name}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{'metric':<10}{'directions':>10}{'better':>8}{'worse':>8}{'no difference (p ≥ 0.05)':>26}")
    for metric in args.metrics:
        some = [row for row in rows if row["metric"] == metric]
        clear = [row["score_b"] - row["score_a"] for row in some if row["p_value"] < 0.05]
        better, worse = sum(difference > 0 for difference in clear), sum(difference < 0 for difference in clear)
        print(f"{metric:<10}{len(some):>10,}{better:>8,}{worse:>8,}{len(some) - better - worse:>26,}")
    print(f"{path}: written; better or worse is {args.output[1]} beside {args.output[0]}")


def score_files(args):
    hypotheses = read_lines(args.hypothesis)
    references = [read_lines(path) for path in args.reference]
    for path, lines in zip(args.reference, references, strict=True):
        same_length(hypotheses, args.hypothesis, lines, path)
    prepared = scoring.References(references, args.metrics, args.tgt_lang, metric_models(args))
    for row in prepared.rows(hypotheses):
        print(json.dumps({"tgt": args.tgt_lang.code, **row}, ensure_ascii=False))


# Report


def report(args):
    names = [path.name for path in args.output]
    if len(set(names)) < len(names) or not all(names):
        names = [str(path) for path in args.output]
    outputs = dict(zip(names, args.output, strict=True))
    systems = {name: read_system(output) for name, output in outputs.items()}
    for output, rows in zip(args.output, systems.values(), strict=True):
        scored = {(row["src"], row["tgt"]) for row in rows}
        for direction in hypotheses_files(output) if (output / "hypotheses").is_dir() else ():
            if direction not in scored:
                raise InputError(f"{output}/scores.jsonl: lacks {'-'.join(direction)}; run evaluate.py score again")
    seen = args.seen and {resolve(code).code for code in args.seen}
    if not args.html and not (args.output[0] / "scores.jsonl").is_file():
        raise InputError(f"--output {args.output[0]}: published tables, not to be written into; say where by --html")
    path = Path(args.html or args.output[0] / "report.html")
    write_report(outputs, systems, path, samples(args, systems), seen, args.threshold)
    print_averages(systems)
    print(f"{path}: written")


def samples(args, systems, directions=6, sentences=10):
    """[(source code, target code, [(line number, (source, hypothesis of each system …, reference))])], from the best
    direction of the first system to its worst; [] where scores came without their hypotheses."""
    record = args.output[0] / "score.json"
    if not record.is_file() or not all((output / "hypotheses").is_dir() for output in args.output):
        return []
    made = read_record(record, "arguments")
    if not chosen_test_set(args):
        for name in (*KINDS, "split"):
            setattr(args, name, made.get(name))
        kind, path = chosen_test_set(args)
        if not Path(path).exists():
            raise InputError(f"{path}, which score read, is not there any more; give it by --{kind}")
    elif args.flores:
        args.split = args.split or made.get("split")
    tests = open_test_set(args)
    hypotheses = [hypotheses_files(output) for output in args.output]
    scores = {
        (row["src"], row["tgt"]): row["score"] for row in next(iter(systems.values())) if row["metric"] == "spBLEU"
    }
    shared = [
        direction
        for direction in sorted(scores, key=lambda direction: (-scores[direction], direction))
        if all(direction in found for found in hypotheses) and tests.has(direction)
    ]
    chosen = []
    for direction in evenly(shared, directions):
        columns = [tests.source(direction), *(read_lines(found[direction]) for found in hypotheses)]
        lines = zip(*columns, tests.references(direction)[0], strict=False)  # after --limit the hypotheses are fewer
        chosen.append((*direction, evenly(list(enumerate(lines, 1)), sentences)))
    return chosen


def evenly(items, count):
    """At most `count` of the items, from the first to the last at even distances."""
    if len(items) <= count:
        return list(items)
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def main():
    args = get_args()
    {"generate": generate, "score": score, "compare": compare, "report": report, "score-files": score_files}[
        args.command
    ](args)


if __name__ == "__main__":
    run(main)
