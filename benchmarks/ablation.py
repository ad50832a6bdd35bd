"""The paper's ablation in miniature: what augmentation, hops and the form of parallel data do in the toy world.

    python benchmarks/ablation.py --folder work/ablation               14 settings, 3 seeds, 2 cells at a time: an hour
    python benchmarks/ablation.py --folder work/ablation --report-only

A cell is a setting with a seed: continual pre-training of the base model, tuning, translation in all 30 directions, by
the same scripts a cluster runs, on one thread. The seed decides the corpus, the initial weights and the order of data.
The base, which all settings of a seed share, knows English, French and Spanish from pairs of its own; Chinese, Tamil
and Thai are new to it. All settings train on the same number of tokens, padding not counted, and see the union of
their data evenly. Instructions name all 30 directions, because in the toy nothing else says what a language's name is.

    P1, P2   two samples of pairs in all directions        M    monolingual text
    P2'      P2, augmented: `augment.py pairs`             M'   M, augmented: `augment.py mono`

A finished cell leaves result.json, metrics.jsonl, tuning.jsonl and log, and is not run again; an interrupted one goes
on with the stage it was in. Output: FOLDER/ablation.json, ablation.md and ablation.png.
"""

import collections
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamax.files import InputError, Parser, read_json, replacing, run, write_json, write_text  # noqa: E402
from llamax.languages import resolve  # noqa: E402
from llamax.metrics import read_metrics  # noqa: E402

BASE_LANGUAGES = {"en", "fr", "es"}
# --pairs: of the corpus, for each two languages and sample; `pairs` of them, half each way, are P1's or P2's.
SCALE = {
    "corpus": {"pairs": 4000, "mono": 2500, "instructions": 200, "test": 50},
    "pairs": 1000,
    "base": {"steps": 600, "rows": 16, "lr": 4e-3, "min_lr": 3e-4},
    "pretrain": {"tokens": 500_000, "tokens_a_step": 960, "seq_length": 64, "lr": 2e-3, "min_lr": 2e-4},
    "tune": {"steps": 500, "rows": 8, "seq_length": 96, "lr": 2e-3},
    "limit": 50,
}
QUICK = {
    "corpus": {"pairs": 400, "mono": 100, "instructions": 20, "test": 20},
    "pairs": 40,
    "base": {"steps": 2, "rows": 4, "lr": 1e-3, "min_lr": 1e-4},
    "pretrain": {"tokens": 6_000, "tokens_a_step": 1_000, "seq_length": 64, "lr": 1e-3, "min_lr": 1e-4},
    "tune": {"steps": 2, "rows": 4, "seq_length": 96, "lr": 1e-3},
    "limit": 1,
}
QUICK_SETTINGS = ("P1+P2'+M",)


class Setting(NamedTuple):
    data: tuple[str, ...]  # names of datasets; none: no continual pre-training
    packing: str = "inside"
    table: str = "3"


SETTINGS = {
    "base": Setting(()),
    "P1": Setting(("P1",)),
    "P1+P2": Setting(("P1", "P2")),
    "P1+M": Setting(("P1", "M")),
    "P1+P2+M": Setting(("P1", "P2", "M")),
    "P1+P2'": Setting(("P1", "P2a")),
    "P1+M'": Setting(("P1", "Ma")),
    "P1+P2'+M": Setting(("P1", "P2a", "M")),
    "P1+P2+M'": Setting(("P1", "P2", "Ma")),
    "P1+P2'+M'": Setting(("P1", "P2a", "Ma")),
    "P1+P2'+M' 2-hop": Setting(("P1", "P2a2", "Ma2"), table="10"),
    "split P1 + M": Setting(("P1s", "M"), table="12"),
    "P1+P2+M across": Setting(("P1", "P2", "M"), "across", "ours"),
    "P1+P2+M none": Setting(("P1", "P2", "M"), "none", "ours"),
}


class Finding(NamedTuple):
    text: str
    claim: str  # gain, loss or same: what the paper says of `setting` against `control`; open: it says nothing
    setting: str
    control: str


FINDINGS = (
    Finding("augmenting parallel data helps", "gain", "P1+P2'", "P1+P2"),
    Finding("augmenting parallel data helps", "gain", "P1+P2'+M", "P1+P2+M"),
    Finding("augmenting monolingual data hurts", "loss", "P1+M'", "P1+M"),
    Finding("augmenting monolingual data hurts", "loss", "P1+P2+M'", "P1+P2+M"),
    Finding("augmenting both is worse than parallel data alone", "loss", "P1+P2'+M'", "P1+P2'+M"),
    Finding("more parallel data helps", "gain", "P1+P2", "P1"),
    Finding("adding monolingual data helps", "gain", "P1+M", "P1"),
    Finding("adding monolingual data helps", "gain", "P1+P2+M", "P1+P2"),
    Finding("continual pre-training helps", "gain", "P1", "base"),
    Finding("2-hop is no better than 1-hop", "same", "P1+P2'+M' 2-hop", "P1+P2'+M'"),
    Finding("split pairs are worse than connected ones", "loss", "split P1 + M", "P1+M"),
    Finding("attention across entries", "open", "P1+P2+M across", "P1+P2+M"),
    Finding("one entry a row", "open", "P1+P2+M none", "P1+P2+M"),
)
COLUMNS = {  # the paper's
    f"{a}→X" if forward else f"X→{a}": (a, forward) for a in ("en", "ta", "th", "zh") for forward in (True, False)
}
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided, by degrees of freedom


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("work/ablation"), metavar="DIR", help="(default %(default)s)")
    add("--seeds", type=int, default=3, help="at most 10 (default %(default)s)")
    add("--settings", nargs="+", choices=SETTINGS, metavar="NAME", help=f"(default: all: {', '.join(SETTINGS)})")
    add("--workers", type=int, default=2, help="cells at a time, one thread each (default %(default)s)")
    add("--quick", action="store_true", help="tiny numbers, for a test: one seed, one setting")
    add("--report-only", action="store_true", help="from the cells that are done")
    args = parser.parse_args()
    if not 1 <= args.seeds <= 10 or args.workers < 1:
        raise InputError(f"--seeds {args.seeds} (expected 1 to 10), --workers {args.workers} (expected at least 1)")
    args.folder = args.folder.resolve()  # the stages run elsewhere
    args.settings = args.settings or list(QUICK_SETTINGS if args.quick else SETTINGS)
    args.seeds = 1 if args.quick else args.seeds
    return args


# Stages: each is a command with its log; one that is done is not run again


class Stages:
    """The subprocesses of one seed's data or one cell, in a folder with their log."""

    children: set = set()  # noqa: RUF012  (of all, to be ended with the run)
    stopping = threading.Event()

    def __init__(self, folder):
        self.folder, self.seconds = folder, {}
        (folder / "done").mkdir(parents=True, exist_ok=True)

    def __call__(self, name, *command, clears=None):
        """Run a script once. What it left when it was interrupted, `clears`, is removed first."""
        done = self.folder / "done" / name
        if not done.is_file():
            if clears:
                shutil.rmtree(clears, ignore_errors=True)
            start = time.perf_counter()
            command = [sys.executable, *map(str, command)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            with open(self.folder / "log", "a", encoding="utf-8") as log:
                print(f"\n── {name}: {' '.join(command)}", file=log, flush=True)
                if self.stopping.is_set():
                    raise InputError(f"{self.folder.name}: not finished; run the same command again to go on")
                child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
                self.children.add(child)
                status = child.wait()
                self.children.discard(child)
            if status:
                raise InputError(f"{self.folder.name}: stage {name} ended with {status}; see {self.folder / 'log'}")
            write_text(done, f"{time.perf_counter() - start:.1f}\n")
        self.seconds[name] = float(done.read_text())


def share_out(records, count):
    """(the first `count` records of each direction, the others that are between the base's languages)."""
    seen, sample, base = collections.Counter(), [], []
    for record in records:
        direction = record["src_lang"], record["tgt_lang"]
        seen[direction] += 1
        if seen[direction] <= count:
            sample.append(record)
        elif BASE_LANGUAGES.issuperset(direction):
            base.append(record)
    return sample, base


def write_jsonl(path, records):
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_pairs(corpus, data, count):
    """P1.jsonl, P2.jsonl, base.jsonl, and held-out.jsonl: the sentences of dev in all directions."""
    base = []
    for name, part in (("P1", "pairs1"), ("P2", "pairs2")):
        lines = (corpus / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        sample, others = share_out(map(json.loads, lines), count)
        write_jsonl(data / f"{name}.jsonl", sample)
        base += others
    write_jsonl(data / "base.jsonl", base)
    files = sorted((corpus / "flores" / "dev").iterdir())
    dev = {resolve(path.stem).code: path.read_text(encoding="utf-8").splitlines() for path in files}
    held_out = [
        {"src": src, "tgt": tgt, "src_lang": a, "tgt_lang": b, "loss": "all", "origin": "toy"}
        for a in dev for b in dev if a != b for src, tgt in zip(dev[a], dev[b], strict=True)
    ]  # fmt: skip
    write_jsonl(data / "held-out.jsonl", held_out)


def prepare(folder, seed, scale, settings):
    """A seed's corpus, datasets and base model."""
    stage, corpus, data = Stages(folder), folder / "corpus", folder / "data"
    hf, training, base = corpus / "hf", scale["base"], folder / "base"
    sizes = [word for name, size in scale["corpus"].items() for word in (f"--{name}", size)]
    stage("corpus", "toy/make_corpus.py", "--output", corpus, "--seed", seed, "--directions", "all", *sizes)
    stage("initial", "toy/init_weights.py", "--hf-model", hf, "--seed", seed)
    if not (data / "held-out.jsonl").is_file():
        write_pairs(corpus, data, scale["pairs"] // 2)
    mono = sorted((corpus / "mono").glob("*.jsonl"))
    lexicon, one, pairs = data / "lexicon.jsonl", ("--workers", 1), lambda name: data / f"{name}.jsonl"
    stage("lexicon", "augment.py", "lexicon", "--muse", *sorted((corpus / "dictionaries").iterdir()),
        "--output", lexicon)  # fmt: skip
    for name in sorted({"base", "held-out"}.union(*(SETTINGS[setting].data for setting in settings))):
        hops = ("--hops", 2) if name.endswith("2") and "a" in name else ()
        common = ("--lexicon", lexicon, "--output", pairs(name), "--seed", seed, *hops, *one)
        if name.startswith("P2a"):
            stage(f"augment-{name}", "augment.py", "pairs", "--input", pairs("P2"), *common)
        elif name.startswith("Ma"):
            stage(f"augment-{name}", "augment.py", "mono", "--input", *mono, *common)
        common = ("--tokenizer-model", hf, "--output-prefix", data / name, "--block-size", 64, *one)
        if name == "M":
            stage(f"data-{name}", "preprocess_mono.py", "--input", *mono, *common)
        else:
            how = ("--format", "split", "--input", pairs("P1")) if name == "P1s" else ("--input", pairs(name))
            stage(f"data-{name}", "preprocess_parallel.py", "--repeat", 1, "--seed", seed, *how, *common)
    stage("base-train", "pretrain_llamax.py", "--hf-model", hf, "--data-path", data / "base", "--save",
        folder / "base-train", "--packing", "inside", "--seq-length", 64, "--micro-batch-size", training["rows"],
        "--train-iters", training["steps"], "--lr", training["lr"], "--min-lr", training["min_lr"], "--seed", seed,
        "--eval-interval", training["steps"], "--log-interval", 100, clears=folder / "base-train")  # fmt: skip
    stage("base", "convert_hf.py", "to-hf", "--load", folder / "base-train", "--hf-model", hf, "--save", base,
        clears=base)  # fmt: skip


# The same number of tokens


def budget(tokens_a_row, tokens, tokens_a_step):
    """(rows a step, steps) that come closest to so many tokens, and to so many a step."""
    rows = max(1, round(tokens_a_step / tokens_a_row))
    return rows, max(1, round(tokens / (rows * tokens_a_row)))


def entry_lengths(prefix):
    from llamax import runtime  # noqa: F401, I001  (first: it silences megatron.core's warnings at import)
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    indexed = IndexedDataset(str(prefix))
    return indexed.sequence_lengths.copy()  # a view of the file, which is closed with `indexed`


def dataset(prefixes, valid, packing, seq_length, seed, rows):
    """The training rows that pretrain_llamax.py draws with these options."""
    from llamax.data import build_datasets

    logging.getLogger("megatron").setLevel(logging.CRITICAL)  # it warns that nothing is cached
    args = SimpleNamespace(data_path=list(map(str, prefixes)), valid_data_path=None, split="1,0,0", seed=seed,
        seq_length=seq_length, packing=packing, data_cache_path="")  # fmt: skip
    if valid:
        args.valid_data_path = [str(valid)]
    return build_datasets(args, 1 << 30, rows, 0)[0]


MEASURING = threading.Lock()


def plan(data, setting, scale, seed):
    """What a cell trains on: weights, rows a step, steps, and the tokens in them."""
    pretrain, prefixes = scale["pretrain"], [data / name for name in setting.data]
    lengths = {prefix: entry_lengths(prefix) for prefix in (*prefixes, data / "held-out")}
    seq_length = pretrain["seq_length"]
    if setting.packing == "none":
        seq_length = max(int(found.max()) for found in lengths.values()) - 1
    # Weights are rows of an epoch, so that each part is seen as often as the others.
    weights = [len(dataset([prefix], None, setting.packing, seq_length, seed, None)) for prefix in prefixes]
    places = sum(int(lengths[prefix].sum()) - len(lengths[prefix]) for prefix in prefixes)
    a_row = seq_length if setting.packing == "across" else places / sum(weights)
    rows, steps = budget(a_row, pretrain["tokens"], pretrain["tokens_a_step"])
    path = [word for pair in zip(weights, prefixes, strict=True) for word in pair]
    drawn = dataset(path, data / "held-out", setting.packing, seq_length, seed, rows * steps)
    tokens = loss_tokens = 0
    for i in range(rows * steps):
        row = drawn[i]
        tokens += int((row["segments"] >= 0).sum()) if "segments" in row else seq_length
        loss_tokens += int(row["loss_mask"].sum())
    return {
        "weights": dict(zip(setting.data, weights, strict=True)), "seq_length": seq_length, "rows_a_step": rows,
        "steps": steps, "tokens": tokens, "tokens_with_loss": loss_tokens, "epochs": rows * steps / sum(weights),
    }  # fmt: skip


# A cell


def columns(scores):
    """The paper's columns and means of {(src, tgt): score}."""
    means = {name: mean(v for d, v in scores.items() if d[not forward] == code)
             for name, (code, forward) in COLUMNS.items()}  # fmt: skip
    means["with English"] = mean(v for d, v in scores.items() if "en" in d)
    means["other 20"] = mean(v for d, v in scores.items() if "en" not in d)
    return means | {"all": mean(scores.values())}


def run_cell(folder, seed_folder, name, seed, scale):
    """Pre-train, tune, translate and score; leaves result.json."""
    setting, corpus, data = SETTINGS[name], seed_folder / "corpus", seed_folder / "data"
    stage, work, hf, planned = Stages(folder), folder / "work", seed_folder / "base", None
    tune, model = scale["tune"], seed_folder / "base"
    if setting.data:
        with MEASURING:
            planned = plan(data, setting, scale, seed)
        options = scale["pretrain"]
        path = [word for data_name, weight in planned["weights"].items() for word in (weight, data / data_name)]
        stage("pretrain", "pretrain_llamax.py", "--hf-model", hf, "--data-path", *path,
            "--valid-data-path", data / "held-out", "--save", work / "pretrain", "--data-cache-path",
            work / "data_cache", "--seq-length", planned["seq_length"], "--packing", setting.packing,
            "--micro-batch-size", planned["rows_a_step"], "--train-iters", planned["steps"], "--lr", options["lr"],
            "--min-lr", options["min_lr"], "--seed", seed, "--eval-interval", planned["steps"], "--eval-iters", 12,
            "--log-interval", 100, clears=work / "pretrain")  # fmt: skip
        model = work / "pretrained"
        stage("export", "convert_hf.py", "to-hf", "--load", work / "pretrain", "--hf-model", hf, "--save", model,
            clears=model)  # fmt: skip
    stage("tune", "sft_alpaca.py", "--hf-model", model, "--data", corpus / "alpaca.json", "--save", work / "tune",
        "--seq-length", tune["seq_length"], "--micro-batch-size", tune["rows"], "--global-batch-size", tune["rows"],
        "--train-iters", tune["steps"], "--lr", tune["lr"], "--seed", seed, "--eval-interval", tune["steps"],
        "--log-interval", 100, "--packing", "none", clears=work / "tune")  # fmt: skip
    stage("export-tuned", "convert_hf.py", "to-hf", "--load", work / "tune", "--hf-model", hf, "--save",
        work / "tuned", clears=work / "tuned")  # fmt: skip
    flores = ("--output", work / "test", "--flores", corpus / "flores")
    stage("generate", "evaluate.py", "generate", *flores, "--hf-model", work / "tuned", "--directions", "all",
        "--max-new-tokens", 16, "--limit", scale["limit"], clears=work / "test")  # fmt: skip
    stage("score", "evaluate.py", "score", *flores, "--spbleu-model", corpus / "hf" / "tokenizer.model",
        "--workers", 1)  # fmt: skip
    lines = map(json.loads, (work / "test" / "scores.jsonl").read_text(encoding="utf-8").splitlines())
    scores = {(row["src"], row["tgt"]): row["score"] for row in lines if row["metric"] == "spBLEU"}
    result = {"setting": name, "seed": seed, "spbleu": columns(scores), "training": planned, "seconds": stage.seconds}
    result["held_out_loss"] = {}
    result["directions"] = {"-".join(direction): score for direction, score in scores.items()}
    for kept, source in (("metrics", "pretrain"), ("tuning", "tune")):
        if (work / source / "metrics.jsonl").is_file():
            rows = read_metrics(work / source / "metrics.jsonl")
            write_jsonl(folder / f"{kept}.jsonl", rows)
            result["held_out_loss"][source] = [row["valid_loss"] for row in rows if "valid_loss" in row][-1]
    write_json(folder / "result.json", result)
    shutil.rmtree(work)
    return result


def cell_folder(folder, name, seed):
    return folder / "cells" / f"{name.replace(chr(39), 'a').replace(' ', '_')}-{seed}"


def run_cells(args, scale):
    """All cells that are not done, `--workers` at a time."""
    todo = [(name, seed) for seed in range(args.seeds) for name in args.settings
            if not (cell_folder(args.folder, name, seed) / "result.json").is_file()]  # fmt: skip
    if not todo:
        return
    start = time.perf_counter()
    with ThreadPoolExecutor(args.workers) as pool:
        seed_folder = {seed: args.folder / f"seed-{seed}" for _, seed in todo}
        ready = {seed: pool.submit(prepare, path, seed, scale, args.settings) for seed, path in seed_folder.items()}

        def cell(name, seed):
            ready[seed].result()
            return run_cell(cell_folder(args.folder, name, seed), seed_folder[seed], name, seed, scale)

        cells = [pool.submit(cell, name, seed) for name, seed in todo]
        try:
            for done, future in enumerate(as_completed(cells), 1):
                result = future.result()
                spent = time.perf_counter() - start
                print(f"{done}/{len(todo)}  {result['setting']}, seed {result['seed']}: {result['spbleu']['all']:.2f} "
                      f"spBLEU, {sum(result['seconds'].values()):.0f} s; {spent / 60:.0f} min so far, about "
                      f"{spent / done * (len(todo) - done) / 60:.0f} left", flush=True)  # fmt: skip
        except BaseException:
            Stages.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(Stages.children):
                child.terminate()
            raise


# The report


def interval(differences):
    """(mean, low, high) of the 95 % t-interval of the mean of paired differences; no bounds from a single one."""
    middle = mean(differences)
    if len(differences) < 2:
        return middle, None, None
    half = T_95[len(differences) - 2] * stdev(differences) / len(differences) ** 0.5
    return middle, middle - half, middle + half


def verdict(claim, differences):
    """What differences between a setting and its control, a seed each, say of the paper's claim."""
    _, low, high = interval(differences)
    if low is None:
        return "one seed: no verdict"
    found = "gain" if low > 0 else "loss" if high < 0 else "same"
    if claim == "open":
        return {"gain": "better here", "loss": "worse here", "same": "no difference seen here"}[found]
    if claim == "same":
        return "consistent" if found == "same" else "not reproduced here"
    return {claim: "reproduced here", "same": "no difference seen here"}.get(found, "not reproduced here")


def read_results(folder):
    """{setting: {seed: result}} of the cells that are done, in the order of the table."""
    results = {name: {} for name in SETTINGS}
    for path in sorted((folder / "cells").glob("*/result.json")):
        result = read_json(path, "--folder")
        results[result["setting"]][result["seed"]] = result
    return {name: dict(sorted(found.items())) for name, found in results.items() if found}


def findings(results):
    """The FINDINGS of which both settings are there, with their numbers."""
    rows = []
    for finding in FINDINGS:
        ours, control = results.get(finding.setting, {}), results.get(finding.control, {})
        seeds = [seed for seed in ours if seed in control]
        differences = [ours[seed]["spbleu"]["all"] - control[seed]["spbleu"]["all"] for seed in seeds]
        losses = [cell[seed]["held_out_loss"].get("pretrain") for cell in (ours, control) for seed in seeds]
        if SETTINGS[finding.setting].packing != SETTINGS[finding.control].packing or None in losses:
            losses = []  # of other rows, or of no pre-training
        losses = [a - b for a, b in zip(losses[: len(seeds)], losses[len(seeds) :], strict=True)]
        if differences:
            middle, low, high = interval(differences)
            rows.append({**finding._asdict(), "differences": differences, "mean": middle, "low": low, "high": high,
                         "loss_differences": losses, "verdict": verdict(finding.claim, differences)})  # fmt: skip
    return rows


def sentence(row):
    """A row of findings() as a sentence."""
    values = ", ".join(f"{value:+.2f}" for value in row["differences"])
    bounds = "" if row["low"] is None else f"; 95 % interval {row['low']:+.2f} to {row['high']:+.2f}"
    losses = ", ".join(f"{value:+.3f}" for value in row["loss_differences"])
    losses = f"; held-out loss {losses}" if losses else ""
    return (f"- {row['text']}: {row['setting']} against {row['control']} {row['mean']:+.2f} (seeds {values}{bounds}"
            f"{losses}): **{row['verdict']}**")  # fmt: skip


def spread(values):
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(results):
    """The Markdown table: means over seeds; for all directions with the standard deviation."""
    names = [*COLUMNS, "with English", "other 20"]
    lines = [
        f"| setting | paper's table | seeds | tokens, thousands | held-out loss | {' | '.join(names)} | all 30 |",
        "| --- | --- |" + " ---: |" * (len(names) + 4),
    ]
    for name, found in results.items():
        cells = list(found.values())
        tokens = [cell["training"]["tokens"] / 1000 for cell in cells if cell["training"]]
        loss = [cell["held_out_loss"]["pretrain"] for cell in cells if cell["training"]]
        means = [f"{mean(cell['spbleu'][column] for cell in cells):.1f}" for column in names]
        row = [name, SETTINGS[name].table, str(len(cells)), f"{mean(tokens):.0f}" if tokens else "0",
               f"{mean(loss):.3f}" if loss else "-", *means]  # fmt: skip
        lines.append(f"| {' | '.join(row)} | {spread([cell['spbleu']['all'] for cell in cells])} |")
    return "\n".join(lines)


def draw(results, path):
    """A bar a setting, the mean over seeds, and a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    controls = {finding.control for finding in FINDINGS}
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.36 * len(results)), layout="constrained")
    for i, (name, found) in enumerate(results.items()):
        values = [result["spbleu"]["all"] for result in found.values()]
        axes.barh(i, mean(values), color="#7a9cc6" if name in controls else "#d9a05b", height=0.7)
        axes.plot(values, [i] * len(values), "o", color="black", markersize=4, alpha=0.7)
    for color, label in (("#7a9cc6", "a control of others"), ("#d9a05b", "no control")):
        axes.barh(0, 0, color=color, label=label)
    axes.plot([], [], "o", color="black", markersize=4, alpha=0.7, label="a seed")
    axes.set_yticks(range(len(results)), [name.replace("'", "′") for name in results])
    axes.invert_yaxis()
    axes.set_xlabel("spBLEU, mean of 30 directions (the toy's own SentencePiece model)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)


def report(folder, scale):
    results = read_results(folder)
    if not results:
        raise InputError(f"--folder {folder}: no cell is done; run without --report-only first")
    rows, count = findings(results), len({seed for found in results.values() for seed in found})
    tuned = scale["tune"]["steps"] * scale["tune"]["rows"]
    versions = {name: version(name) for name in ("torch", "megatron-core", "transformers", "sacrebleu")}
    write_json(folder / "ablation.json", {
        "scale": scale, "versions": {"python": platform.python_version(), **versions}, "findings": rows,
        "cells": [cell for found in results.values() for cell in found.values()],
    })  # fmt: skip
    base = scale["base"]["steps"] * scale["base"]["rows"] * scale["pretrain"]["seq_length"]
    text = f"""# The ablation in miniature

The base, which stands for LLaMA-2, has seen up to {base:,} tokens of pairs among English, French and Spanish. \
{scale["pairs"] // 2} pairs a direction in P1 and in P2 (the paper: 12,500), {scale["corpus"]["mono"]} sentences a \
language in M; {scale["pretrain"]["tokens"]:,} tokens of continual pre-training, {tuned:,} \
instructions, {scale["limit"]} held-out sentences in each of 30 directions, beam 4. spBLEU with the toy's own \
SentencePiece model, which compares with nothing else; means over {count} seed(s), ± standard deviation. The held-out \
loss is that after continual pre-training, of pairs in all directions, each setting's in its own layout of rows.

{table(results)}

Differences are paired by seed, of the mean of all 30 directions. The interval is Student's; with three seeds it is wide
(4.3 standard errors), so that "no difference seen here" is no proof of equality; of {len(rows)} comparisons at 95 % one
may well miss by chance.

{chr(10).join(map(sentence, rows))}
"""
    write_text(folder / "ablation.md", text)
    draw(results, folder / "ablation.png")
    print(text, end="")


def main():
    args = get_args()
    scale, recorded = QUICK if args.quick else SCALE, args.folder / "scale.json"
    if recorded.is_file() and read_json(recorded, "--folder") != scale:
        raise InputError(f"--folder {args.folder}: holds cells of another scale, see {recorded}; choose another folder")
    if not args.report_only:
        write_json(recorded, scale)
        run_cells(args, scale)
    report(args.folder, scale)


if __name__ == "__main__":
    run(main)
