"""evaluate.py score on all directions of Flores-101 beside sacrebleu: seconds, and whether the numbers are the same.

    python benchmarks/score.py --flores ../shared/data/flores101 --folder work/score-benchmark \\
        --spbleu-model ../shared/data/tokenizers/sacrebleu_tokenizer_spm.model

makes hypotheses of their own for each of the 10,302 directions (1,012 lines each, 1.9 GB): the references with words,
or characters where no spaces are used, left out and replaced by others of the language, more in some directions than
in others. Then it times `evaluate.py score` as a whole, start and records included, on as many cores as --workers,
for spBLEU and for spBLEU with chrF++, and for a sample of the directions one after another on one core
- a `sacrebleu` process a direction, for the same metrics,
- sacrebleu.corpus_bleu(…, tokenize="flores101") in a loop, and corpus_chrf(…, word_order=2), reading not included.
Prints one JSON object, in which a ratio is sacrebleu's time for a direction over ours. All numbers of the sample must
be the same to the last digit, or nothing is reported.
"""

import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamax.files import InputError, Parser, existing_file, existing_folder, run  # noqa: E402
from llamax.languages import resolve  # noqa: E402
from llamax.testsets import make_test_set, read_lines  # noqa: E402

SEED = 1234
BOTH = ("spBLEU", "chrF++")
SACREBLEU = {"spBLEU": "bleu", "chrF++": "chrf"}  # its names on the command line


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--flores", required=True, metavar="DIR", help="folder that holds devtest/LANGUAGE.devtest")
    add("--spbleu-model", required=True, metavar="FILE", help="flores101's SentencePiece file, for both sides")
    add("--folder", required=True, metavar="DIR", help="where to work; removed in the end")
    add("--directions", type=int, help="only so many, into as few languages as possible (default: all)")
    add("--sample", type=int, default=100, help="directions that sacrebleu scores, too (default %(default)s)")
    add("--workers", type=int, default=2, help="of evaluate.py score (default %(default)s)")
    args = parser.parse_args()
    args.flores = existing_folder(args.flores, "--flores")
    args.spbleu_model = existing_file(args.spbleu_model, "--spbleu-model").resolve()
    args.folder = Path(args.folder)
    if args.folder.exists():
        raise InputError(f"--folder {args.folder}: exists; it would be removed in the end: choose another one")
    return args


# Hypotheses


def make_hypotheses(tests, directions, folder):
    """Write folder/SRC-TGT.txt for each direction."""
    folder.mkdir(parents=True)
    numbers = {code: number for number, code in enumerate(tests.languages)}
    for target, some in itertools.groupby(directions, key=lambda direction: direction[1]):
        joint = " " if resolve(target).spaces else ""
        split = [line.split(" ") if joint else list(line) for line in tests.references(("en", target))[0]]
        for source, _ in some:
            rng = np.random.default_rng([SEED, numbers[source], numbers[target]])
            lines = [joint.join(words) for words in worse(split, rng)]
            (folder / f"{source}-{target}.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())


def worse(lines, rng):
    """Lists of words, of which some are left out and some replaced by any other word of the lines."""
    words = np.array(list(itertools.chain.from_iterable(lines)), object)
    rate = rng.uniform(0.05, 0.5)
    drawn = np.where(rng.random(len(words)) < rate, rng.integers(0, len(words), len(words)), np.arange(len(words)))
    kept = rng.random(len(words)) > rate / 3
    ends = np.append(0, kept.cumsum())[np.cumsum([0, *map(len, lines)])].tolist()
    words = words[drawn][kept].tolist()
    return [words[start:end] for start, end in itertools.pairwise(ends)]


# Times


def timed(function):
    """(seconds, what the function returns)."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def evaluate_score(args, metrics):
    """({"seconds", "cpu_seconds"} of a run of evaluate.py score, {(direction, metric): score})."""
    command = [
        sys.executable, ROOT / "evaluate.py", "score", "--output", args.folder, "--flores", args.flores,
        "--spbleu-model", args.spbleu_model, "--metrics", *metrics, "--workers", args.workers,
    ]  # fmt: skip
    for name in ("scores.jsonl", "score.json"):
        (args.folder / name).unlink(missing_ok=True)  # or it would find that all is done
    cores = sorted(os.sched_getaffinity(0))[: args.workers]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, _ = timed(
        lambda: subprocess.run(
            [str(part) for part in command],
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = map(json.loads, (args.folder / "scores.jsonl").read_text("utf-8").splitlines())
    scores = {((row["src"], row["tgt"]), row["metric"]): row["score"] for row in rows}
    return {"seconds": seconds, "cpu_seconds": cpu}, scores


def sacrebleu_process(hypotheses, reference, metrics):
    """{metric: score} of one `sacrebleu` process."""
    command = [
        sys.executable, "-m", "sacrebleu", reference, "--input", hypotheses, "--metrics", *map(SACREBLEU.get, metrics),
        "--tokenize", "flores101", "--chrf-word-order", 2, "--force", "--format", "json", "--width", 20,
    ]  # fmt: skip
    found = json.loads(subprocess.check_output([str(part) for part in command]))
    found = found if isinstance(found, list) else [found]
    return {metric: one["score"] for metric, one in zip(metrics, found, strict=True)}


def sacrebleu_scores(hypotheses, reference):
    """{what: (seconds, {metric: score})} of sacrebleu's ways to score a file."""
    from sacrebleu import corpus_bleu, corpus_chrf

    lines, references = read_lines(hypotheses), [read_lines(reference)]
    return {
        "process, spBLEU": timed(lambda: sacrebleu_process(hypotheses, reference, BOTH[:1])),
        "process, both": timed(lambda: sacrebleu_process(hypotheses, reference, BOTH)),
        "corpus_bleu": timed(lambda: {"spBLEU": corpus_bleu(lines, references, tokenize="flores101").score}),
        "corpus_chrf": timed(lambda: {"chrF++": corpus_chrf(lines, references, word_order=2).score}),
    }


def measure(args):
    tests = make_test_set("flores", args.flores, "devtest")
    targets = random.Random(SEED).sample(tests.languages, len(tests.languages))
    directions = sorted(tests.directions("all"), key=lambda direction: targets.index(direction[1]))[: args.directions]
    sample = random.Random(SEED).sample(directions, min(args.sample, len(directions)))
    make_hypotheses(tests, directions, args.folder / "hypotheses")
    size = sum(path.stat().st_size for path in (args.folder / "hypotheses").iterdir())

    spbleu, spbleu_scores = evaluate_score(args, BOTH[:1])
    both, scores = evaluate_score(args, BOTH)
    peers, compared = {}, 0
    for direction in sample:
        paths = args.folder / "hypotheses" / f"{'-'.join(direction)}.txt", tests.files(direction)[1][0]
        for what, (seconds, found) in sacrebleu_scores(*paths).items():
            peers.setdefault(what, []).append(seconds)
            for metric, score in found.items():
                ours = {scores[direction, metric], spbleu_scores.get((direction, metric), score)}
                if ours != {score}:
                    raise InputError(f"{'-'.join(direction)} {metric}: {ours}, sacrebleu's {what} says {score}")
                compared += 1
    peers = {what: sum(seconds) / len(seconds) for what, seconds in peers.items()}

    def result(took, process, *functions):
        seconds = took["seconds"] / len(directions)
        loop = sum(map(peers.get, functions))
        return {
            **{name: round(value, 1) for name, value in took.items()},
            "seconds a direction": round(seconds, 4),
            "times as fast as a sacrebleu process a direction": round(peers[process] / seconds, 1),
            f"times as fast as {' and '.join(functions)} in a loop": round(loop / seconds, 1),
        }

    found = {
        "directions": len(directions),
        "lines": len(tests.source(directions[0])),
        "GB of hypotheses": round(size / 1e9, 2),
        "workers": args.workers,
        "spBLEU": result(spbleu, "process, spBLEU", "corpus_bleu"),
        "spBLEU and chrF++": result(both, "process, both", "corpus_bleu", "corpus_chrf"),
        "sampled directions": len(sample),
        "sacrebleu, seconds a direction": {what: round(seconds, 4) for what, seconds in peers.items()},
        "numbers that are the same": compared,
    }
    print(json.dumps(found, indent=2))


def main():
    args = get_args()
    try:
        models = args.folder / "sacrebleu" / "models"
        models.mkdir(parents=True)
        (models / "sacrebleu_tokenizer_spm.model").symlink_to(args.spbleu_model)
        os.environ["SACREBLEU"] = str(models.parent.resolve())  # where it would put the file that it downloads
        measure(args)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    run(main)
