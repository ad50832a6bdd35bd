"""Preprocessing and code-switching at sizes that hurt: memory, rejects and duplicates, against independent counts.

    python benchmarks/scale.py memory     --folder work/scale      0.5 and 5 GB of text, deduplicated; 2,000 shards
    python benchmarks/scale.py rejects    --folder work/scale      ten million records, of which 2 % cannot be used
    python benchmarks/scale.py duplicates --folder work/scale      a million lines with planted duplicates
    python benchmarks/scale.py switching  --folder work/scale      half a million and ten million pairs, code-switched

Text and tokenizer are those of ../shared/data (see --text, --tokenizer-model). Each prints one JSON object; what it
makes is removed. Memory is the sum over all processes of their anonymous and shared pages, the greatest of samples
taken twenty times a second; pages that several processes share are counted for each.
"""

import collections
import contextlib
import functools
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.augment import build_lexicon, real_pairs  # noqa: E402
from llamax.files import InputError, Parser, existing_file, existing_folder, read_json, run  # noqa: E402
from llamax.languages import resolve  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("what", choices=("memory", "rejects", "duplicates", "switching"))
    add("--folder", required=True, metavar="DIR", help="where to work; some 20 GB for memory")
    add("--text", default=str(SHARED / "ntrex" / "NTREX-128"), metavar="DIR", help="folder of .txt files (%(default)s)")
    add("--tokenizer-model", default=str(SHARED / "tokenizers" / "llama2.tokenizer.model"), metavar="FILE",
        help="(%(default)s)")  # fmt: skip
    add("--workers", type=int, default=2, help="processes (default %(default)s)")
    add("--scale", type=float, default=1.0, help="of all sizes, for a trial (default %(default)s)")
    args = parser.parse_args()
    existing_folder(args.text, "--text")
    existing_file(args.tokenizer_model, "--tokenizer-model")
    args.folder = Path(args.folder)
    if args.folder.exists():
        raise InputError(f"--folder {args.folder}: exists; it would be removed in the end: choose another one")
    return args


def texts(args):
    """All lines of the text files, again and again, each different: a number is added."""
    files = sorted(Path(args.text).glob("*.txt"))
    lines = [line.rstrip("\r") for file in files for line in file.read_bytes().decode("utf-8").split("\n") if line]
    turn = 0
    while True:
        yield from (f"{line} {turn}" for line in lines)
        turn += 1


def write_records(path, args, size):
    """Write different records to a .jsonl until it has `size` bytes."""
    with open(path, "w", encoding="utf-8") as file:
        for text in texts(args):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if file.tell() >= size:
                return


def watch(command):
    """Run a command; returns (seconds, greatest memory in MiB, greatest number of processes). Fails if it fails."""
    start, most, processes = time.perf_counter(), 0, 0
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        total, count = 0, 0
        for one in [root, *_children(root)]:
            try:
                status = Path(f"/proc/{one.pid}/status").read_text()
            except OSError:
                continue
            found = dict(line.split(":", 1) for line in status.splitlines())
            total += sum(int(found[key].split()[0]) for key in ("RssAnon", "RssShmem") if key in found)
            count += 1
        most, processes = max(most, total), max(processes, count)
        time.sleep(0.05)
    if process.returncode:
        raise InputError(f"{' '.join(map(str, command))}: exit status {process.returncode}; see its message")
    return time.perf_counter() - start, most / 1024, processes


def _children(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def preprocess(args, source, output, *options):
    return [
        sys.executable, ROOT / "preprocess_mono.py", "--input", source, "--lang", "mul_Latn", "--tokenizer-model",
        args.tokenizer_model, "--output-prefix", output, "--workers", args.workers, *options,
    ]  # fmt: skip


def memory(args):
    found = {}
    for size in (0.5, 5):
        source = args.folder / f"{size}.jsonl"
        write_records(source, args, size * 1e9 * args.scale)
        seconds, peak, processes = watch(preprocess(args, source, args.folder / "d", "--dedup"))
        found[f"{size} GB"] = {"seconds": round(seconds, 1), "peak_mib": round(peak), "processes": processes}
        for path in args.folder.glob("d*"):
            path.unlink()
    # Many shards of the smaller corpus, made in one process: 2,000 starts of Python would tell nothing more.
    import preprocess_mono
    from llamax import sources

    sources.PIECE_BYTES = 1 << 16
    preprocess_mono.load_tokenizer = functools.cache(preprocess_mono.load_tokenizer)
    count = int(2000 * args.scale) or 1
    for number in range(count):
        sys.argv = list(map(str, preprocess(args, args.folder / "0.5.jsonl", args.folder / "s", "--dedup")[1:]))
        sys.argv += ["--shard", f"{number}/{count}", "--workers", "1"]
        with contextlib.redirect_stdout(None):
            preprocess_mono.main()
    shards = sorted(map(str, args.folder.glob("s-*-of-*.json")))
    seconds, peak, _ = watch(
        [sys.executable, ROOT / "merge_datasets.py", "--input", *shards, "--output-prefix", args.folder / "m"]
    )
    found["merge"] = {"shards": len(shards), "seconds": round(seconds, 1), "peak_mib": round(peak)}
    return found


# The nine ways of design.md's "bad input" for monolingual text, and the reason that each is rejected for.
BROKEN = [
    (b'{"text": "caf\xe9 %d"}', "invalid UTF-8"),
    (b'{"text": "cut off %d', "invalid JSON"),
    (b'["%d"]', "not an object"),
    (b'{"content": "%d"}', "missing field"),
    (b'{"text": %d}', "wrong type"),
    (b'{"text": " ", "id": %d}', "empty"),
    (b'{"text": "x", "lang": "qq%d"}', "unknown language"),
    (b'{"text": "null \\u0000 %d"}', "null character"),
    (b'{"text": "%0500d"}', "over-long"),
]


def rejects(args):
    source, rng = args.folder / "a.jsonl", random.Random(0)
    expected, good = {}, 0
    with open(source, "wb") as file:
        for number, text in enumerate(texts(args), 1):
            if rng.random() < 0.02:
                line, reason = rng.choice(BROKEN)
                file.write(line % number + b"\n")
                expected[number] = reason
            else:
                file.write(json.dumps({"text": text[:400]}, ensure_ascii=False).encode("utf-8") + b"\n")
                good += 1
            if number >= 10_000_000 * args.scale:
                break
    options = ("--max-reject-rate", "0.05", "--max-chars", "450")
    seconds, peak, _ = watch(preprocess(args, source, args.folder / "d", *options))
    found, wrong = {}, 0
    with open(args.folder / "d.rejects.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            found[row["line"]] = row["reason"]
            wrong += row["file"] != str(source)
    manifest = json.loads((args.folder / "d.json").read_text())
    return {
        "records": number,
        "broken": len(expected),
        "ways": dict(collections.Counter(expected.values())),
        "rejects": len(found),
        "missed": len(expected.keys() - found.keys()),
        "good_ones_rejected": len(found.keys() - expected.keys()),
        "other_reason_or_file": wrong
        + sum(found[line] != reason for line, reason in expected.items() if line in found),
        "documents": manifest["documents"],
        "documents_expected": good,
        "seconds": round(seconds, 1),
        "peak_mib": round(peak),
    }


def grams(text):
    text = " ".join(text.lower().split())
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def altered(text, rng):
    """The text with some words exchanged for others of it, dropped or doubled."""
    words = text.split(" ")
    for _ in range(rng.randint(1, max(1, len(words) // 8))):
        i = rng.randrange(len(words))
        words[i] = rng.choice(["", words[i] * 2, rng.choice(words), words[i].upper() + "!"])
    return " ".join(words)


def duplicates(args):
    """A million lines of random words: a tenth are copies of earlier ones, a tenth copies with some words changed.

    The reference finds exact duplicates by a set of texts, and judges each changed copy by the exact Jaccard similarity
    of its character 5-grams to the line that it was made from. No other two lines resemble each other.
    """
    threshold, rng = 0.8, random.Random(0)
    files = sorted(Path(args.text).glob("*.txt"))
    base = [
        line.rstrip("\r") for file in files for line in file.read_bytes().decode("utf-8").split("\n") if line.strip()
    ]
    words = sorted({word for line in base for word in line.split(" ") if word})
    source = args.folder / "a.jsonl"
    kept, seen, exact, similarity = [], set(), set(), {}
    with open(source, "w", encoding="utf-8") as file:
        for number in range(1, int(1_000_000 * args.scale) + 1):
            kind = rng.random() if kept else 1
            if kind < 0.1:
                text = rng.choice(kept)
            elif kind < 0.2:
                original = rng.choice(kept)
                text = altered(original, rng)
                if text not in seen:
                    a, b = grams(original), grams(text)
                    similarity[number] = len(a & b) / len(a | b)
            else:
                text = " ".join(rng.choices(words, k=rng.randint(8, 40)))  # no two of them are alike
                kept.append(text)
            if text in seen:
                exact.add(number)
            seen.add(text)
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    command = preprocess(args, source, args.folder / "d", "--dedup", "--near-dedup", threshold)
    seconds, peak, _ = watch(command)
    found = collections.defaultdict(set)
    with open(args.folder / "d.rejects.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            found[row["reason"]].add(row["line"])
    near = found["near-duplicate"]
    planted = {line for line, j in similarity.items() if j >= threshold}
    return {
        "lines": number,
        "exact_planted": len(exact),
        "exact_missed": len(exact - found["duplicate"]),
        "exact_wrong": len(found["duplicate"] - exact),
        "threshold": threshold,
        "near_planted": len(planted),
        "near_dropped": len(near),
        "near_recall": round(len(near & planted) / len(planted), 4),
        "near_precision": round(len(near & planted) / max(1, len(near)), 4),
        "near_precision_0.05_below": round(
            sum(similarity.get(line, 0) >= threshold - 0.05 for line in near) / max(1, len(near)), 4
        ),
        "seconds": round(seconds, 1),
        "peak_mib": round(peak),
    }


def switching(args):
    """Every source has a word of its own, so that what workers remember would grow with the corpus if it could."""
    lexicon, source, output = args.folder / "lexicon.jsonl", args.folder / "pairs.jsonl", args.folder / "out.jsonl"
    build_lexicon(SHARED, lexicon)
    codes = {"en", *read_json(f"{lexicon}.manifest.json")["languages"]}
    pairs = [pair for pair in real_pairs(SHARED) if pair[0] in codes and resolve(pair[0]).spaces]
    found = {"lexicon_mib": round(Path(f"{lexicon}.index").stat().st_size / 2**20)}
    for size in (500_000, 10_000_000):
        count = int(size * args.scale)
        with open(source, "w", encoding="utf-8") as file:
            for number, (lang, src, tgt) in zip(range(count), itertools.cycle(pairs), strict=False):
                record = {"src": f"{src} {number}", "tgt": tgt, "src_lang": lang, "tgt_lang": "en"}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        command = [sys.executable, ROOT / "augment.py", "pairs", "--lexicon", lexicon, "--input", source,
                   "--output", output, "--workers", args.workers]  # fmt: skip
        seconds, peak, processes = watch(command)
        manifest = read_json(f"{output}.manifest.json")
        found[f"{count} pairs"] = {
            "seconds": round(seconds, 1),
            "peak_mib": round(peak),
            "processes": processes,
            "input_gb": round(source.stat().st_size / 1e9, 2),
            "read": manifest["records"],
            "written": manifest["pairs"],
        }
        for path in (output, Path(f"{output}.manifest.json")):
            path.unlink()
    return found


def main():
    args = get_args()
    args.folder.mkdir(parents=True)
    try:
        run_one = {"memory": memory, "rejects": rejects, "duplicates": duplicates, "switching": switching}[args.what]
        print(json.dumps(run_one(args), indent=2))
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    run(main)
