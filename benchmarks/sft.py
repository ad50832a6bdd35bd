"""Tokens a second of sft_alpaca.py, examples packed, beside transformers' Trainer, examples padded.

    pip install -r requirements-test.txt -c constraints.txt
    python benchmarks/sft.py --output work/sft.json                    # a Llama of 45 M parameters, CPU, fp32
    python benchmarks/sft.py --device cuda --hidden-size 2048 --ffn-hidden-size 5504 --heads 16 --layers 16 \\
        --examples 4096 --output work/sft-cuda.json                    # one GPU, bf16: not tried yet

Examples are drawn from Alpaca; those over --seq-length are left out. sft_alpaca.py --packing inside makes a dataset of
them; Trainer gets the ids and labels that stand there, in random order, and pads each micro-batch to its longest
example (DataCollatorForSeq2Seq). --micro-batch-size is rows of ours, examples of Trainer's, which accumulates as many
micro-batches as come nearest to our examples a step. Both start from one Hugging Face folder of random weights, with
AdamW, the learning rate constant, attention on torch's scaled_dot_product_attention, one process. First each side
computes all examples in one step: loss and gradient norm must agree, or nothing is reported. It would not be the same
work.

What is counted: the tokens of whole examples, padding left out, and the seconds of steps (benchmarks/pretrain.py says
which) after the first ones (--warm-up), as many as one pass over the examples has. Trainer's are one pass exactly; ours
end at a whole number of steps, in the second pass, and what is in them is counted. Each repetition runs both, in turn,
in processes of their own; the result is the median.

`fill` is the share of the computed places that is not padding. Without padding, and as fast a place, Trainer would be
1 / fill times as fast: `allowed`. What ours reaches of that, (ours / Trainer) · fill, is `reached`.
"""

import json
import math
import shutil
import statistics
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pretrain import (  # noqa: E402
    SEED,
    SHARED,
    TOLERANCE,
    add_options,
    check_options,
    machine,
    make_model,
    measure,
    need_accelerate,
    take_turns,
    train_ours,
    train_trainer,
)
from llamax.files import InputError, Parser, existing_file, read_json, run, write_json  # noqa: E402

ADAMW = {"weight_decay": 0.0, "adam_beta2": 0.999}  # Stanford Alpaca's


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add_options(parser)
    add = parser.add_argument
    add("--data", default=str(SHARED / "alpaca" / "alpagasus_random_9k.json"), metavar="FILE", help="(%(default)s)")
    add("--examples", type=int, default=256, help="how many of them, drawn at random (default %(default)s)")
    parser.set_defaults(layers=4, micro_batch_size=8, warm_up=1)
    args = parser.parse_args()
    check_options(args, "examples")
    existing_file(args.data, "--data")
    need_accelerate()
    return args


# ---- one run, in a process of its own: {"losses", "grad_norms", "seconds", "loss_tokens"} of each step


def ours(settings):
    import sft_alpaca

    options = {"data": settings["chosen"], "packing": "inside", "global_batch_size": settings["global_batch_size"]}
    return train_ours(sft_alpaca, settings, **options, **ADAMW)


def trainer(settings):
    import transformers

    examples = read_json(settings["encoded"])
    tokenizer = transformers.LlamaTokenizer.from_pretrained(settings["model"], pad_token="<unk>", padding_side="right")
    pad, loss_tokens, places = transformers.DataCollatorForSeq2Seq(tokenizer), [], []

    def collate(micro_batch):
        batch = pad(micro_batch)
        loss_tokens.append(int((batch["labels"] != -100).sum()))
        places.append(batch["input_ids"].numel())
        return batch

    accumulation = settings["accumulation"]
    warm_up = settings["warm_up"] * accumulation  # micro-batches, of the examples that come last
    rows = [examples[i % len(examples)] for i in range(-warm_up * settings["micro_batch_size"], len(examples))]
    found = train_trainer(settings, rows, collate, **ADAMW)
    assert sum(places[warm_up:]) == settings["places"], places
    steps = range(0, len(loss_tokens), accumulation)
    return {**found, "loss_tokens": [sum(loss_tokens[i : i + accumulation]) for i in steps]}


def one_run(side, settings_file, output):
    settings = read_json(settings_file)
    write_json(output, {"ours": ours, "trainer": trainer}[side](settings))


# ---- what both sides read


def choose_examples(args, names, tokenizer):
    """Write the first --examples of --data, in random order, that sft_alpaca.py would not reject."""
    from llamax.records import Unusable
    from sft_alpaca import encode_example, read_examples

    everything, chosen = [example for _, example in read_examples(args.data)], []
    for i in np.random.default_rng(SEED).permutation(len(everything)):
        try:
            encode_example(everything[i], tokenizer, names)
        except Unusable:
            continue
        chosen.append(everything[i])
        if len(chosen) == args.examples:
            return write_json(names.data[0], chosen)
    raise InputError(f"--data {args.data}: {len(chosen)} usable examples, expected --examples {args.examples}")


def make_data(args, folder):
    """Examples, model and dataset: {side: what its runs are told}."""
    from llamax import runtime  # noqa: F401, I001  (first: it silences megatron.core's warnings at import)
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    from llamax.prompts import DEFAULT_PROMPT
    from llamax.tokenizer import load_tokenizer
    from sft_alpaca import preprocess

    made = {name: str(folder / name) for name in ("chosen", "encoded", "model", "cache")}
    # What sft_alpaca.py's functions read of its arguments.
    names = Namespace(data=[made["chosen"]], hf_model=made["model"], save=str(folder), prompt=DEFAULT_PROMPT,
                      over_long="drop", seq_length=args.seq_length, max_reject_rate=0.0, packing="inside", seed=SEED,
                      split="100,0,0", valid_data_path=None, data_cache_path=made["cache"])  # fmt: skip
    tokenizer = load_tokenizer(args.tokenizer_model)
    choose_examples(args, names, tokenizer)
    make_model(args, tokenizer.vocab_size, made["model"])
    shutil.copy(args.tokenizer_model, folder / "model" / "tokenizer.model")
    prefix = preprocess(names)
    ids, loss = IndexedDataset(prefix), IndexedDataset(f"{prefix}_loss")
    encoded = [
        {"input_ids": ids[i].tolist(), "labels": np.where(loss[i], ids[i].astype(int), -100).tolist()}
        for i in range(len(ids))
    ]
    write_json(made["encoded"], encoded)
    ours = plan_ours(args, names, prefix, tokenizer.vocab_size)
    theirs = plan_trainer(args, encoded, ours["examples_a_step"])
    return {"ours": {**vars(args), **made, **ours}, "trainer": {**vars(args), **made, **theirs}}


def plan_ours(args, names, prefix, vocab_size):
    """How many steps are counted, how many examples a step is to have, and what is in the counted steps."""
    from llamax.data import build_datasets, epoch_of

    rows, examples, _ = epoch_of(names, prefix, vocab_size)
    a_step = args.micro_batch_size * args.accumulation
    steps = max(1, round(rows / a_step))
    first, end = args.warm_up * a_step, (args.warm_up + steps) * a_step
    names.data_path = [prefix]
    dataset, *_ = build_datasets(names, vocab_size, end, 0)
    counted = [dataset[i] for i in range(first, end)]
    entries = sum(int(row["segments"].max()) + 1 for row in counted)
    filled = sum(int((row["segments"] >= 0).sum()) for row in counted)
    places = len(counted) * args.seq_length
    return {
        "steps": steps,
        "global_batch_size": round(a_step * examples / rows),
        "examples_a_step": a_step * examples / rows,
        "counted_examples": entries,
        "counted_tokens": filled + entries,  # an entry's last token is only a label, and takes no place
        "counted_loss_tokens": sum(int(row["loss_mask"].sum()) for row in counted),
        "places": places,
        "fill": filled / places,
    }


def plan_trainer(args, encoded, examples_a_step):
    """The same for Trainer, whose steps are of so many micro-batches ("accumulation")."""
    micro = args.micro_batch_size
    sizes = [len(example["input_ids"]) for example in encoded]
    accumulation = max(1, round(examples_a_step / micro))
    places = sum(max(part) * len(part) for part in (sizes[i : i + micro] for i in range(0, len(sizes), micro)))
    return {
        "steps": math.ceil(len(sizes) / (micro * accumulation)),
        "accumulation": accumulation,
        "examples_a_step": micro * accumulation,
        "counted_examples": len(sizes),
        "counted_tokens": sum(sizes),
        "counted_loss_tokens": sum(label != -100 for example in encoded for label in example["labels"]),
        "places": places,
        "fill": sum(sizes) / places,
    }


# ---- measuring


def check_same_work(found, device):
    """InputError unless what the sides found in their first step, of the same examples, is the same."""
    for name, tolerance in (("loss_tokens", 0), ("losses", TOLERANCE[device]), ("grad_norms", TOLERANCE[device])):
        a, b = found["ours"][name][0], found["trainer"][name][0]
        if not abs(a - b) <= tolerance * b:
            raise InputError(
                f"all examples in one step: {name} {a}, Trainer's {b}; not the same work, nothing to compare"
            )


def first_step(args, settings):
    """[ours, Trainer's] of the untrained model, all examples in one step: "loss_tokens", "losses", "grad_norms"."""
    one = {"warm_up": 0, "steps": 1}
    micro_batches = math.ceil(args.examples / args.micro_batch_size)
    found = {
        # Rows one by one: as many as hold all examples need not be a multiple of --micro-batch-size.
        "ours": measure(__file__, "ours", {**settings["ours"], **one, "micro_batch_size": 1,
                                           "global_batch_size": args.examples}),
        "trainer": measure(__file__, "trainer", {**settings["trainer"], **one, "accumulation": micro_batches}),
    }  # fmt: skip
    check_same_work(found, args.device)
    return {name: [found[side][name][0] for side in found] for name in ("loss_tokens", "losses", "grad_norms")}


def compare(args, settings):
    """Both sides in turn, --repetitions times, and the table."""
    for side, told in settings.items():
        print(f"{side}: {told['examples_a_step']:.1f} examples a step; {told['steps']} steps counted, of "
              f"{told['counted_examples']} examples, {told['counted_tokens']:,} tokens, {told['places']:,} places "
              f"({told['fill']:.1%} filled)", flush=True)  # fmt: skip
    first = first_step(args, settings)
    print("untrained, all examples in one step, ours and Trainer's: "
          + "; ".join(f"{name} {a:.8g}, {b:.8g}" for name, (a, b) in first.items()), flush=True)  # fmt: skip
    for runs in take_turns(__file__, args.repetitions, settings):
        for side, results in runs.items():
            counted = sum(results[-1]["loss_tokens"][args.warm_up :])
            assert counted == settings[side]["counted_loss_tokens"], (side, counted, settings[side])
    medians = {side: statistics.median(r["tokens_per_second"] for r in results) for side, results in runs.items()}
    print(f"\n{'':8} {'median tokens/s':>16} {'places/s':>9}  all")
    for side, results in runs.items():
        values = " ".join(f"{r['tokens_per_second']:,.0f}" for r in results)
        places = medians[side] * settings[side]["places"] / settings[side]["counted_tokens"]
        print(f"{side:8} {medians[side]:16,.0f} {places:9,.0f}  {values}")
    ratio, fill = medians["ours"] / medians["trainer"], settings["trainer"]["fill"]
    print(f"ours / Trainer: {ratio:.3f}; Trainer's fill of {fill:.1%} allows {1 / fill:.3f}, "
          f"of which {ratio * fill:.1%} is reached\n")  # fmt: skip
    keys = ("steps", "examples_a_step", "counted_examples", "counted_tokens", "counted_loss_tokens", "places", "fill")
    work = {side: {key: told[key] for key in keys} for side, told in settings.items()}
    return {"median": medians, "ratio": ratio, "allowed": 1 / fill, "reached": ratio * fill, "work": work,
            "first_step": first, "runs": runs}  # fmt: skip


def main():
    if sys.argv[1:2] == ["--one-run"]:
        return one_run(*sys.argv[2:])
    args = get_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(args, make_data(args, Path(folder)))
    result = {"arguments": vars(args), "machine": machine(args), **figures}
    write_json(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}))


if __name__ == "__main__":
    run(main)
