"""Sentences a second of evaluate.py generate beside the published procedure, and whether it changes a translation.

    python benchmarks/generate.py --toy work/toy --output work/generate.json          (after make toy)

The published procedure is that of LLaMAX's inference script (https://github.com/CONE-MT/LLaMAX): one direction at a
time, in input order, 8 sentences a batch, padded on the left, 256 new tokens. Both translate the same sentences of
the toy world, in fp32, with beam 4 and with greedy search, in one process and with the same threads, in turn; loading
the model is not counted, reading, encoding and writing files is. Then every sentence is translated alone, unpadded, by
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
    add("--sentences", type=int, default=256, help="a direction (default %(default)s)")
    add("--max-new-tokens", type=int, default=256, help="tokens a translation (default %(default)s)")
    add("--repetitions", type=int, default=3, help="of each, in turn (default %(default)s)")
    add("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the result here, too (JSON)")
    return parser.parse_args()


def published(model, tests, directions, args):
    """The published loop: {direction: lines}."""
    tokenizer, found = model.encoder.tokenizer, {}
    for direction in directions:
        lines, found[direction] = tests.source(direction), []
        for start in range(0, len(lines), PUBLISHED_BATCH):
            prompts = [prompt_of(tokenizer, line, direction) for line in lines[start : start + PUBLISHED_BATCH]]
            width = max(map(len, prompts))
            ids = torch.tensor([[tokenizer.eos_id] * (width - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            with torch.inference_mode():
                output = model.plain.generate(ids, attention_mask=mask)
            found[direction] += [model.encoder.text(row[width:]) for row in output.tolist()]
    return found


def prompt_of(tokenizer, line, direction):
    return prompt_ids(tokenizer, translation_prompt(line, *direction))


def ours(model, tests, directions, folder):
    """evaluate.py's own function, which also writes the files: {direction: lines}."""

    def source(direction):
        return tests.source_key(direction), tests.source(direction)

    args = SimpleNamespace(shard=None, max_batch_tokens=evaluate.MAX_BATCH_TOKENS)
    evaluate.translate_all(directions, source, model, {"settings": {}}, folder, args)
    return {direction: read_lines(hypotheses_file(folder, direction)) for direction in directions}


def alone(model, tests, directions):
    """Every sentence by itself."""
    tokenizer, found = model.encoder.tokenizer, {}
    for direction in directions:
        found[direction] = []
        for line in tests.source(direction):
            ids = torch.tensor([prompt_of(tokenizer, line, direction)])
            with torch.inference_mode():
                output = model.plain.generate(ids, attention_mask=torch.ones_like(ids))
            found[direction].append(model.encoder.text(output[0, ids.shape[1] :].tolist()))
    return found


def mean_log_probability(model, line, direction, text):
    """What beam search compares: log-probability a token of a translation, its EOS included."""
    tokenizer = model.encoder.tokenizer
    prompt = prompt_of(tokenizer, line, direction)
    answer = [*tokenizer.encode_continuation(text), tokenizer.eos_id]
    with torch.inference_mode():
        logits = model.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[range(len(answer)), answer].mean().item()


def compare(num_beams, tests, directions, args, work):
    search = Search(num_beams=num_beams, max_new_tokens=args.max_new_tokens)
    model = open_model(args.toy / "tuned-hf", "llamax", None, search, "transformers", "cpu", "float32")
    model.load()
    model.plain = transformers.AutoModelForCausalLM.from_pretrained(args.toy / "tuned-hf", dtype=torch.float32)
    model.plain.generation_config = model.model.generation_config
    sentences = sum(len(tests.source(direction)) for direction in directions)
    seconds = {"published": [], "ours": []}
    for repetition in range(args.repetitions):
        started = time.perf_counter()
        expected = published(model, tests, directions, args)
        seconds["published"].append(time.perf_counter() - started)
        started = time.perf_counter()
        found = ours(model, tests, directions, work / f"beam{num_beams}-{repetition}")
        seconds["ours"].append(time.perf_counter() - started)
    rates = {name: sentences / statistics.median(times) for name, times in seconds.items()}
    reference = alone(model, tests, directions)
    different, ties = 0, 0
    for direction in directions:
        for line, a, b in zip(tests.source(direction), reference[direction], found[direction], strict=True):
            if a != b:
                different += 1
                scores = [mean_log_probability(model, line, direction, text) for text in (a, b)]
                ties += abs(scores[0] - scores[1]) < 1e-4
                print(f"differs: {direction} {line!r}: {a!r} {b!r} {scores}", file=sys.stderr)
    return {
        "sentences": sentences,
        "sentences_a_second": {name: round(rate, 1) for name, rate in rates.items()},
        "seconds": {name: [round(time, 2) for time in times] for name, times in seconds.items()},
        "times_as_fast": round(rates["ours"] / rates["published"], 2),
        "differ_from_unbatched": different,
        "of_these_ties": ties,
        "published_differ_from_unbatched": sum(
            a != b for direction in directions for a, b in zip(reference[direction], expected[direction], strict=True)
        ),
    }


def main():
    args = get_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        corpus = [sys.executable, ROOT / "toy/make_corpus.py", "--output", work / "corpus", "--pairs", "2"]
        subprocess.run(
            [*map(str, corpus), "--mono", "1", "--instructions", "1", "--test", str(args.sentences)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        tests = make_test_set("flores", work / "corpus/flores")
        directions = tests.directions(args.directions)
        result = {
            "threads": args.threads,
            "directions": args.directions,
            "beam 4": compare(4, tests, directions, args, work),
            "greedy": compare(1, tests, directions, args, work),
        }
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
