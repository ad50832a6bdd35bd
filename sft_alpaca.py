"""Instruction tuning on Alpaca (or any file in its form), on the engine of pre-training.

    torchrun --nproc-per-node 8 sft_alpaca.py --hf-model work/hf --data alpaca_data.json --save work/sft --bf16
    # a cluster: sbatch slurm/sft.sh alpaca

Each example is BOS, the prompt (llamax/prompts.py), the response and EOS; the loss is on the response and its EOS
only. A row holds as many whole examples as fit, with attention inside each: the losses are those of one example a row
(--packing none), several times as fast. Defaults are Stanford Alpaca's for 7B: batch 128, learning rate 2e-5, 3 epochs,
length 512, cosine, warm-up 0.03, no weight decay. All weights are tuned (an assumption: the paper does not say).

Examples longer than --seq-length allows are dropped, or cut as Stanford's were. The prepared examples stay in
SAVE/data; the last hundredth of them is held out (--split), and its loss reported.
"""

import json
from pathlib import Path

from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
import numpy as np
from megatron.core import parallel_state

from llamax.arguments import add_training_arguments, check_args
from llamax.data import epoch_of
from llamax.files import InputError, Parser, existing_file, fingerprint, read_json, require_same_origin, run
from llamax.indexed import FORMAT, writing_dataset
from llamax.model import read_shape
from llamax.prompts import DEFAULT_PROMPT, PROMPTS, alpaca_prompt, prompt_ids, response_ids
from llamax.records import Reject, Rejects, Unusable, json_object, read_blocks, usable_text
from llamax.tokenizer import load_tokenizer
from pretrain_llamax import train


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument_group("data").add_argument
    add("--data", nargs="+", required=True, metavar="FILE", help="instruction, input, output: JSON arrays of such "
        "objects, which are read whole, or .jsonl, an object a line")  # fmt: skip
    add("--prompt", choices=PROMPTS, default=DEFAULT_PROMPT, help="the form of an example (default %(default)s)")
    add("--over-long", choices=("drop", "cut"), default="drop", help="what happens to examples of more than "
        "--seq-length + 1 tokens; what is cut has no EOS (default %(default)s)")  # fmt: skip
    add("--num-train-epochs", type=float, default=3, help="unless --train-iters (default %(default)s)")
    add("--split", default="99,1,0", help="train,valid,test shares of the examples (default %(default)s)")
    add("--max-reject-rate", type=float, default=0.01, help="share of rejects that ends the run (default %(default)s)")
    add_training_arguments(
        parser,
        train_iters=None,
        packing="inside",
        seq_length=512,
        micro_batch_size=4,
        global_batch_size=128,
        lr=2e-5,
        lr_warmup_fraction=0.03,
        weight_decay=0.0,
        adam_beta2=0.999,
    )
    args = parser.parse_args()
    args.data_path, args.valid_data_path = [], None  # made from --data below
    problems = []
    if args.train_iters is None and not args.num_train_epochs > 0:
        problems.append(f"--num-train-epochs {args.num_train_epochs}: expected above 0")
    if not 0 <= args.max_reject_rate <= 1:
        problems.append(f"--max-reject-rate {args.max_reject_rate}: expected a share from 0 to 1")
    check_args(args, problems, rounds_batch=args.packing != "none")
    args.data = [str(existing_file(path, "--data")) for path in args.data]
    return args


def read_examples(path):
    """Yield (number, example) of an Alpaca file: the lines of a .jsonl, still bytes, else the items of a JSON array."""
    if path.endswith(".jsonl"):
        for block in read_blocks(path):
            yield from ((i, line) for i, line in enumerate(block.lines, block.first_line) if line.strip())
        return
    try:
        examples = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise InputError(f"--data {path}: not valid JSON ({error}); expected a list of examples") from None
    if not isinstance(examples, list):
        raise InputError(f"--data {path}: found a JSON {type(examples).__name__}, expected a list of examples")
    yield from enumerate(examples, 1)


def parse_example(example):
    """(instruction, input, output) of an example as read_examples gives it, or Unusable."""
    if isinstance(example, bytes):
        example = json_object(example)
    if not isinstance(example, dict):
        raise Unusable("not an object", f"found {type(example).__name__}")
    for field in ("instruction", "input", "output"):
        if field not in example:
            raise Unusable("missing field", field)
        if not isinstance(example[field], str):
            raise Unusable("wrong type", f"{field} is {type(example[field]).__name__}, expected a string")
    for field in ("instruction", "output"):
        usable_text(example[field], field)
    if example["input"]:
        usable_text(example["input"], "input")
    return example["instruction"], example["input"], example["output"]


def encode_example(example, tokenizer, args):
    """(ids, number of prompt tokens, whether its end is cut off), or Unusable."""
    instruction, input_text, response = parse_example(example)
    context = prompt_ids(tokenizer, alpaca_prompt(instruction, input_text, args.prompt))
    ids = context + response_ids(tokenizer, response)
    longest = args.seq_length + 1  # the last token is only a label
    if len(ids) > longest and args.over_long == "drop":
        raise Unusable("over-long", f"{len(ids)} tokens")
    if len(context) >= longest:
        raise Unusable("over-long prompt", f"{len(context)} tokens")
    return ids[:longest], len(context), len(ids) > longest


def preprocess(args):
    """Write the examples as an indexed dataset with its loss mask; returns its prefix."""
    tokenizer = load_tokenizer(args.hf_model)
    prefix = str(Path(args.save) / "data" / "alpaca")
    arguments = {name: getattr(args, name) for name in ("prompt", "over_long", "seq_length")}
    arguments["tokenizer"] = tokenizer.manifest()
    sources = [fingerprint(path) for path in args.data]
    if Path(f"{prefix}.json").exists():
        require_same_origin(
            read_json(f"{prefix}.json", "--save"),
            {"format": FORMAT, "sources": sources, **arguments},
            f"--save {args.save}",
            "give the same --data, --prompt, --over-long, --seq-length and tokenizer, or choose another --save",
        )
        return prefix
    rejects, cut = Rejects(prefix), 0
    with writing_dataset(prefix, tokenizer.vocab_size) as (writer, manifest):
        for path in args.data:
            for number, example in read_examples(path):
                try:
                    ids, context, is_cut = encode_example(example, tokenizer, args)
                except Unusable as why:
                    rejects.add(1, [Reject(path, number, *why.args)])
                    continue
                rejects.add(1, [])
                cut += is_cut
                writer.add(np.array(ids), [len(ids)], [1], np.arange(len(ids)) >= context)
        rejects.judge(args.max_reject_rate)
        manifest.update(kind="sft", arguments=arguments, sources=sources, rejects=dict(rejects.reasons), cut=cut)
    print(f"{prefix}: {manifest['documents']:,} examples, {cut:,} of them cut, {manifest['loss_tokens']:,} response "
          f"tokens, {sum(rejects.reasons.values()):,} rejects {dict(rejects.reasons)}", flush=True)  # fmt: skip
    return prefix


def rows_a_step(wanted, micro_batch_size, ranks):
    """(rows a rank computes at once, rows a step) for a step of about `wanted` rows on so many data-parallel ranks: the
    largest micro-batch up to the given one that comes within 5 % of it, or what comes nearest."""
    found = []
    for micro in range(1, micro_batch_size + 1):
        at_once = micro * ranks
        found.append((micro, max(1, round(wanted / at_once)) * at_once))
    return min(found, key=lambda pair: (max(abs(pair[1] - wanted), 0.05 * wanted), -pair[0]))


def plan_steps(args, prefix):
    """Make of --global-batch-size, a number of examples, one of rows, and of --num-train-epochs one of steps."""
    rows, examples, held_out = epoch_of(args, prefix, read_shape(args.hf_model).vocab_size)
    args.examples_a_step = args.global_batch_size  # as it was given, for run.json
    if args.packing != "none":
        wanted, ranks = args.examples_a_step * rows / examples, parallel_state.get_data_parallel_world_size()
        args.micro_batch_size, args.global_batch_size = rows_a_step(wanted, args.micro_batch_size, ranks)
        held = f"hold {args.global_batch_size * examples / rows:.1f} examples on average"
        runtime.log(f"{args.global_batch_size} rows a step {held}; micro-batches of {args.micro_batch_size}")
    if args.train_iters is None:
        args.train_iters = max(1, round(args.num_train_epochs * rows / args.global_batch_size))
    args.lr_decay_iters = args.lr_decay_iters or args.train_iters
    if args.eval_interval and not held_out:
        runtime.log(f"no held-out loss: --split {args.split} holds none of {examples} examples out")
        args.eval_interval = 0


def main():
    args = get_args()
    with runtime.joined(args) as (watchdog, stop):
        watchdog.at("preparing the examples")
        prefix = runtime.on_first_rank(lambda: preprocess(args))
        args.data_path = ["1", prefix]
        plan_steps(args, prefix)
        train(args, watchdog, stop)


if __name__ == "__main__":
    run(main)
