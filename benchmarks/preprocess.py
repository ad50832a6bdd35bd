"""Throughput of preprocess_mono.py beside Megatron-LM's tool and beside gigatoken alone, in one run.

    git clone --branch core_v0.16.1 https://github.com/NVIDIA/Megatron-LM
    python benchmarks/preprocess.py --megatron Megatron-LM --text ../shared/data/ntrex/NTREX-128 \\
        --tokenizer-model ../shared/data/tokenizers/llama2.tokenizer.model --output work/preprocess.json

The text files are written as .jsonl, again and again, until it has --megabytes. Each repetition runs every contestant
once, in turn: whole commands, from start to exit, but for gigatoken alone, whose time is that of one encode_batch of
all texts, which are in memory, in a process of its own. The figures are medians, the rates in MB of UTF-8 text.
--megatron-fast is a checkout that has tools/preprocess_data_fast.py, the variant that reads .jsonl with gigatoken;
it takes a Hugging Face tokenizer folder, which is made of the model here. --megatron-python runs both: beside
megatron-core they need six and triton.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamax.files import InputError, Parser, existing_file, existing_folder, run, write_json  # noqa: E402

RAW = """
import json, sys, time
import gigatoken
texts = [json.loads(line)["text"] for line in open(sys.argv[1], "rb")]
tokenizer = gigatoken.Tokenizer.from_sentencepiece(sys.argv[2])
tokenizer.encode_batch(texts[:1000])
start = time.perf_counter()
tokenizer.encode_batch(texts)
print(time.perf_counter() - start)
"""


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--megatron", metavar="DIR", help="checkout of Megatron-LM, tag core_v0.16.1 (default: left out)")
    add("--megatron-fast", metavar="DIR", help="checkout that has tools/preprocess_data_fast.py (default: left out)")
    add("--megatron-python", default=sys.executable, metavar="FILE", help="interpreter for these (default: this one)")
    add("--text", required=True, metavar="DIR", help="folder of .txt files, a text a line")
    add("--tokenizer-model", required=True, metavar="FILE", help="SentencePiece model")
    add("--megabytes", type=int, default=500, help="size of the .jsonl, at least (default %(default)s)")
    add("--workers", type=int, default=2, help="of each contestant (default %(default)s)")
    add("--repetitions", type=int, default=5, help="of each contestant (default %(default)s)")
    add("--output", required=True, metavar="FILE", help="writes all figures as JSON")
    args = parser.parse_args()
    existing_folder(args.text, "--text")
    existing_file(args.tokenizer_model, "--tokenizer-model")
    return args


def write_corpus(args, path):
    """Write the .jsonl; returns the bytes of its texts."""
    files = sorted(Path(args.text).glob("*.txt"))
    lines = [line.rstrip("\r") for file in files for line in file.read_bytes().decode("utf-8").split("\n") if line]
    if not lines:
        raise InputError(f"--text {args.text}: no line in any .txt file; expected a folder of text files")
    once = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines).encode("utf-8")
    repeats = -(-args.megabytes * 10**6 // len(once))
    with open(path, "wb") as file:
        for _ in range(repeats):
            file.write(once)
    return repeats * sum(len(line.encode("utf-8")) for line in lines)


def huggingface_tokenizer(model, folder):
    """A tokenizer folder that `transformers` loads, made of a SentencePiece model."""
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    folder.mkdir()
    made = sentencepiece_to_tokenizer_json(Path(model).read_bytes())
    (folder / "tokenizer.json").write_text(made if isinstance(made, str) else json.dumps(made), encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def contestants(args, corpus, folder):
    """{name: command}; OUT in a command is where it writes."""
    common = ["--input", str(corpus), "--tokenizer-model"]
    ours = [sys.executable, str(ROOT / "preprocess_mono.py"), *common, args.tokenizer_model, "--lang", "mul_Latn",
            "--workers", str(args.workers), "--output-prefix", "OUT"]  # fmt: skip
    found = {"ours": ours, "gigatoken": [sys.executable, "-c", RAW, str(corpus), args.tokenizer_model]}
    if args.megatron:
        found["megatron"] = [
            args.megatron_python, f"{args.megatron}/tools/preprocess_data.py", *common, args.tokenizer_model,
            "--tokenizer-type", "Llama2Tokenizer", "--append-eod", "--workers", str(args.workers),
            "--output-prefix", "OUT",
        ]  # fmt: skip
    if args.megatron_fast:
        huggingface_tokenizer(args.tokenizer_model, folder / "tokenizer")
        found["megatron-fast"] = [
            args.megatron_python, f"{args.megatron_fast}/tools/preprocess_data_fast.py", *common,
            str(folder / "tokenizer"), "--tokenizer-type", "HuggingFaceTokenizer", "--use-gigatoken", "--append-eod",
            "--output-prefix", "OUT",
        ]  # fmt: skip
    return found


def measure(name, command, args, folder):
    """Seconds of one run, or None if it fails."""
    checkout = {"megatron": args.megatron, "megatron-fast": args.megatron_fast}.get(name)
    environment = {"PYTHONPATH": str(checkout)} if checkout else {}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [part.replace("OUT", f"{out}/d") if part == "OUT" else part for part in command]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        seconds = time.perf_counter() - start
    if done.returncode:
        print(f"{name}: fails: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", flush=True)
        return None
    return float(done.stdout) if name == "gigatoken" else seconds


def main():
    args = get_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        size = write_corpus(args, folder / "corpus.jsonl")
        found = contestants(args, folder / "corpus.jsonl", folder)
        seconds = {name: [] for name in found}
        for repetition in range(args.repetitions):
            for name in list(seconds):
                took = measure(name, found[name], args, folder)
                if took is None:
                    del seconds[name]
                    continue
                seconds[name].append(took)
                print(f"{repetition + 1}/{args.repetitions} {name}: {took:.2f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"\n{'':14} {'median s':>9} {'MB/s':>7} {'ours is':>9}")
    for name, median in medians.items():
        print(f"{name:14} {median:9.2f} {size / median / 1e6:7.1f} {median / medians['ours']:8.2f}x")
    write_json(args.output, {"text_bytes": size, "workers": args.workers, "seconds": seconds, "median": medians})


if __name__ == "__main__":
    run(main)
