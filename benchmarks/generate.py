"""Sentences a second of evaluate.py generate beside the published procedure, and whether it changes a translation.

    python benchmarks/generate.py --toy work/toy --output work/generate.json          (after make toy)

The published procedure is that of LLaMAX's inference script (https://github.com/CONE-MT/LLaMAX): one direction at a
time, in input order, 8 sentences a batch, padded on the left, 256 new tokens; one process, --cores threads. Ours is
evaluate.py's translate_all(), which also reads, encodes and writes, in --cores processes of one thread that share the
work (--shard). Both translate the same sentences of the toy world, in fp32, in turn, with beam 4 and with greedy
search; loading the model and a first batch are not counted. Then every sentence is translated alone, unpadded, by
plain `transformers`: what differs from that is counted, and told apart from ties, where the two translations have the
same score to 1e-4.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402

import evaluate  # noqa: E402
from llamax.files import write_json  # noqa: E402
from llamax.generation import Search, open_model  # noqa: E402
from llamax.hypotheses import hypotheses_file  # noqa: E402
from llamax.prompts import prompt_ids, translation_prompt  # noqa: E402
from llamax.testsets import make_test_set, read_lines  # noqa: E402

PUBLISHED_BATCH = 8


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--toy", type=Path, default=Path("work/toy"), metavar="DIR", help="what make toy made (default %(default)s)")
    add("--directions", default="en-fr,fr-en,en-es,zh-en", help="(default %(default)s)")
    add("--sentences", type=int, default=1012, help="a direction (default %(default)s)")
    add("--max-new-tokens", type=int, default=256, help="tokens a translation (default %(default)s)")
    add("--repetitions", type=int, default=3, help="of each, in turn (default %(default)s)")
    add("--cores", type=int, default=2, help="(default %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the result here, too (JSON)")
    add("--worker", nargs=4, metavar=("RANK", "BEAMS", "FLORES", "OUTPUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def load(args, num_beams):
    search = Search(num_beams=num_beams, max_new_tokens=args.max_new_tokens)
    model = open_model(args.toy / "tuned-hf", "llamax", None, search, "transformers", "cpu", "float32")
    model.load()
    return model


def work(args):
    """One of our processes: loads the model, says so, waits for a line, translates its share."""
    rank, num_beams, flores, output = args.worker
    torch.set_num_threads(1)
    model, tests = load(args, int(num_beams)), make_test_set("flores", flores)
    directions = tests.directions(args.directions)
    share = SimpleNamespace(shard=f"{rank}/{args.cores}", max_batch_tokens=evaluate.MAX_BATCH_TOKENS)
    alone = SimpleNamespace(shard=None, max_batch_tokens=evaluate.MAX_BATCH_TOKENS)

    def source(direction):
        return tests.source_key(direction), tests.source(direction)

    def few(direction):
        return "few", tests.source(direction)[:8]

    with tempfile.TemporaryDirectory() as scratch:  # the first batch of a process takes longer
        evaluate.translate_all(directions[:1], few, model, {"settings": {}}, Path(scratch), alone)
    print("ready", flush=True)
    input()
    evaluate.translate_all(directions, source, model, {"settings": {}}, Path(output), share)
    print("done", flush=True)


def ours(num_beams, flores, output, args):
    """Seconds of our processes, from their models loaded to the last one's last file."""
    command = [sys.executable, __file__, "--toy", args.toy, "--directions", args.directions]
    command += ["--cores", args.cores, "--max-new-tokens", args.max_new_tokens, "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*map(str, command), str(rank), str(num_beams), str(flores), str(output)], **pipes)
        for rank in range(args.cores)
    ]
    say(processes, "ready")
    started = time.perf_counter()
    for process in processes:
        print(file=process.stdin, flush=True)
    say(processes, "done")
    seconds = time.perf_counter() - started
    for process in processes:
        process.communicate()
    return seconds


def say(processes, word):
    """Wait until all say a word."""
    for process in processes:
        while (line := process.stdout.readline()) != f"{word}\n":
            assert line, "a process ended; what it says is above"


class Plain:
    """`transformers` as the published script and single sentences use it."""

    def __init__(self, args, num_beams):
        self.encoder = (ours := load(args, num_beams)).encoder
        self.model = transformers.AutoModelForCausalLM.from_pretrained(args.toy / "tuned-hf", dtype=torch.float32)
        self.model.generation_config = ours.model.generation_config

    def prompt(self, line, direction):
        return prompt_ids(self.encoder.tokenizer, translation_prompt(line, *direction))

    def translate(self, lines, direction):
        prompts = [self.prompt(line, direction) for line in lines]
        width, padding = max(map(len, prompts)), self.encoder.tokenizer.eos_id
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = self.model.generate(ids, attention_mask=mask)
        return [self.encoder.text(row[width:]) for row in output.tolist()]

    def translate_all(self, tests, directions, size):
        """{direction: lines}, so many sentences a batch, in input order."""
        found = {direction: [] for direction in directions}
        for direction in directions:
            lines = tests.source(direction)
            for start in range(0, len(lines), size):
                found[direction] += self.translate(lines[start : start + size], direction)
        return found

    def score(self, line, direction, text):
        """What beam search compares: log-probability a token of a translation, its EOS included."""
        prompt = self.prompt(line, direction)
        tokenizer = self.encoder.tokenizer
        answer = [*tokenizer.encode_continuation(text), tokenizer.eos_id]
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits, -1)[range(len(answer)), answer].mean().item()


def compare(num_beams, flores, folder, args):
    tests, plain = make_test_set("flores", flores), Plain(args, num_beams)
    directions = tests.directions(args.directions)
    plain.translate(tests.source(directions[0])[:PUBLISHED_BATCH], directions[0])
    seconds = {"published": [], "ours": []}
    for repetition in range(args.repetitions):
        started = time.perf_counter()
        published = plain.translate_all(tests, directions, PUBLISHED_BATCH)
        seconds["published"].append(time.perf_counter() - started)
        output = folder / f"{num_beams}-{repetition}"
        seconds["ours"].append(ours(num_beams, flores, output, args))
    sentences = sum(len(lines) for lines in published.values())
    rates = {name: sentences / statistics.median(times) for name, times in seconds.items()}

    alone = plain.translate_all(tests, directions, 1)
    different, ties = 0, 0
    for direction in directions:
        found = read_lines(hypotheses_file(output, direction))
        for line, a, b in zip(tests.source(direction), alone[direction], found, strict=True):
            if a != b:
                different += 1
                scores = [plain.score(line, direction, text) for text in (a, b)]
                ties += abs(scores[0] - scores[1]) < 1e-4
                print(f"differs: {direction} {line!r}: {a!r} {b!r} {scores}", file=sys.stderr)
    return {
        "sentences": sentences,
        "sentences_a_second": {name: round(rate, 1) for name, rate in rates.items()},
        "seconds": {name: [round(time, 2) for time in times] for name, times in seconds.items()},
        "times_as_fast": round(rates["ours"] / rates["published"], 2),
        "differ_from_unbatched": different,
        "of_these_ties": ties,
    }


def main():
    args = get_args()
    if args.worker:
        return work(args)
    torch.set_num_threads(args.cores)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        corpus = ["toy/make_corpus.py", "--output", folder / "corpus", "--pairs", 2, "--mono", 1, "--instructions", 1]
        command = [sys.executable, *corpus, "--test", args.sentences]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        result = {"cores": args.cores, "directions": args.directions}
        for name, num_beams in (("beam 4", 4), ("greedy", 1)):
            result[name] = compare(num_beams, folder / "corpus/flores", folder, args)
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
