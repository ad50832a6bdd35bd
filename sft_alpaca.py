"""Instruction tuning on Alpaca (or any file in its form), on the engine of pre-training.

    torchrun --nproc-per-node 8 sft_alpaca.py --hf-model work/hf --data alpaca_data.json --save work/sft --bf16
    # a cluster: srun python sft_alpaca.py …

Each example is BOS, LLaMAX's prompt (llamax/prompts.py), the response and EOS; the loss is on the response and its
EOS only. Defaults are Stanford Alpaca's for 7B: batch 128, learning rate 2e-5, 3 epochs, length 512, cosine, warm-up
0.03, no weight decay. All weights are tuned (an assumption: the paper does not say).
"""

import json
from pathlib import Path

from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
import numpy as np

from llamax.arguments import add_training_arguments, check_args
from llamax.files import InputError, Parser, existing_file, fingerprint, run
from llamax.indexed import already_done, read_manifest, writing_dataset
from llamax.prompts import alpaca_prompt, prompt_ids, response_ids
from llamax.records import Reject, Rejects, Unusable, usable_text
from llamax.tokenizer import load_tokenizer
from pretrain_llamax import train


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", nargs="+", required=True, metavar="FILE", help="Alpaca JSON: instruction, input, output"
    )
    data.add_argument("--num-train-epochs", type=float, default=3, help="unless --train-iters (default %(default)s)")
    data.add_argument("--split", default="99,1,0", help="train,valid,test shares of the examples (default %(default)s)")
    data.add_argument("--max-reject-rate", type=float, default=0.01, help="share of rejects that ends the run")
    add_training_arguments(
        parser,
        train_iters=None,
        packing="none",
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
    if args.train_iters is None:
        if args.packing != "none":
            problems.append(f"--packing {args.packing}: epochs are counted in rows of one example; give --train-iters")
        if not args.num_train_epochs > 0:
            problems.append(f"--num-train-epochs {args.num_train_epochs}: expected above 0")
    if not 0 <= args.max_reject_rate <= 1:
        problems.append(f"--max-reject-rate {args.max_reject_rate}: expected a share from 0 to 1")
    check_args(args, problems)
    args.data = [str(existing_file(path, "--data")) for path in args.data]
    return args


def read_examples(path):
    """The examples of an Alpaca file: a JSON array of {"instruction", "input", "output"}."""
    try:
        examples = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise InputError(f"--data {path}: not valid JSON ({error}); expected a list of examples") from None
    if not isinstance(examples, list):
        raise InputError(f"--data {path}: found a JSON {type(examples).__name__}, expected a list of examples")
    return examples


def parse_example(example):
    """(prompt, response) of an example, or Unusable."""
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
    return alpaca_prompt(example["instruction"], example["input"]), example["output"]


def encode_example(example, tokenizer, longest):
    """(ids, number of prompt tokens), or Unusable."""
    prompt, response = parse_example(example)
    context = prompt_ids(tokenizer, prompt)
    ids = context + response_ids(tokenizer, response)
    if len(ids) > longest:
        raise Unusable("over-long", f"{len(ids)} tokens")
    return ids, len(context)


def preprocess(args):
    """Write the examples as an indexed dataset with its loss mask; returns its prefix."""
    tokenizer = load_tokenizer(args.hf_model)
    prefix = str(Path(args.save) / "data" / "alpaca")
    arguments = {"prompt": "llamax", "tokenizer": tokenizer.manifest(), "seq_length": args.seq_length}
    sources = [fingerprint(path) for path in args.data]
    if already_done(prefix, arguments, sources):
        return prefix
    rejects = Rejects(prefix)
    with writing_dataset(prefix, tokenizer.vocab_size) as (writer, manifest):
        for path in args.data:
            for number, example in enumerate(read_examples(path), 1):
                try:
                    ids, context = encode_example(example, tokenizer, args.seq_length + 1)
                except Unusable as why:
                    rejects.add(1, [Reject(path, number, *why.args)])
                    continue
                rejects.add(1, [])
                writer.add(np.array(ids), [len(ids)], [1], np.arange(len(ids)) >= context)
        rejects.judge(args.max_reject_rate)
        manifest.update(kind="sft", arguments=arguments, sources=sources, rejects=dict(rejects.reasons))
    print(f"{prefix}: {manifest['documents']:,} examples, {manifest['loss_tokens']:,} response tokens, "
          f"{sum(rejects.reasons.values()):,} rejects {dict(rejects.reasons)}", flush=True)  # fmt: skip
    return prefix


def main():
    args = get_args()
    with runtime.joined(args) as (watchdog, stop):
        prefix = runtime.on_first_rank(lambda: preprocess(args))
        args.data_path = ["1", prefix]
        if args.train_iters is None:
            shares = [float(share) for share in args.split.split(",")]
            examples = read_manifest(prefix)["documents"] * shares[0] / sum(shares)
            args.train_iters = max(1, round(args.num_train_epochs * examples / args.global_batch_size))
        args.lr_decay_iters = args.lr_decay_iters or args.train_iters
        train(args, watchdog, stop)


if __name__ == "__main__":
    run(main)
