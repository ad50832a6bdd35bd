"""Continual pre-training of a Llama on megatron.core (LLaMAX, section 2.1; objective: Eq. 1).

    # two CPU processes, a toy
    torchrun --nproc-per-node 2 pretrain_llamax.py --hf-model toy/hf --init-weights --data-path 1 data/a 2 data/b \\
        --save work/run --seq-length 64 --micro-batch-size 32 --global-batch-size 64 --train-iters 100 --lr 1e-3
    # one node of GPUs: the same with --bf16 and --nproc-per-node 8; a cluster: sbatch slurm/pretrain.sh

`--data-path W1 P1 W2 P2 …` is Megatron's: dataset prefixes with the share of samples each gives. `--hf-model` names a
Hugging Face folder: the model's shape comes from its config.json, its weights from its safetensors files, unless
--init-weights asks for random ones. Checkpoints, run.json (what the run was made from), metrics.jsonl, TensorBoard
events and loss.png go to --save; with --load the run goes on from the latest checkpoint there, if there is one.
"""

import math
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path

from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from llamax import checkpoint
from llamax.data import PACKING, SequentialSampler, attention_mask, build_datasets, data_prefixes
from llamax.files import InputError, Parser, existing_folder, read_json, run, write_json
from llamax.metrics import Metrics
from llamax.model import build_model, read_shape
from llamax.weights import load_hf_weights


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--data-path", nargs="+", required=True, help="[weight] prefix pairs, or prefixes alone")
    data.add_argument("--valid-data-path", nargs="+", help="held-out data in the same form (instead of --split)")
    data.add_argument("--split", default="99,1,0", help="train,valid,test shares of each dataset (default %(default)s)")
    add_training_arguments(parser)
    args = parser.parse_args()
    check_args(args)
    return args


def add_training_arguments(parser, **defaults):
    """The options of pre-training and fine-tuning alike; `defaults` replace those below."""
    add = parser.add_argument_group("model").add_argument
    add("--hf-model", required=True, metavar="DIR", help="Hugging Face Llama folder: config.json, safetensors")
    add("--init-weights", action="store_true", help="start from random weights, not from those of --hf-model")
    add("--save", required=True, metavar="DIR", help="checkpoints, metrics and pictures go here")
    add("--load", metavar="DIR", help="go on from the latest checkpoint in this --save folder, if it has one")
    add("--data-cache-path", metavar="DIR", help="where dataset indices are cached (default: SAVE/data_cache)")
    add = parser.add_argument_group("batches").add_argument
    add("--seq-length", type=int, default=512, help="tokens a row (default %(default)s)")
    add("--packing", choices=PACKING, default="across", help="how entries fill rows: joined end to end with attention "
        "across them, whole with attention inside each, or one entry a row (default %(default)s)")  # fmt: skip
    add("--micro-batch-size", type=int, default=32, help="rows a rank computes at once (default %(default)s)")
    add("--global-batch-size", type=int, help="rows an optimizer step (default: one micro-batch a rank)")
    add("--train-iters", type=int, required="train_iters" not in defaults, help="optimizer steps in all")
    add("--eval-interval", type=int, default=100, help="steps between held-out losses, 0: never (default %(default)s)")
    add("--eval-iters", type=int, default=10, help="global batches a held-out loss (default %(default)s)")
    add("--num-workers", type=int, default=0, help="processes a rank that read data (default %(default)s: none)")
    add = parser.add_argument_group("optimizer").add_argument
    add("--lr", type=float, default=2e-5, help="peak learning rate of AdamW (default %(default)s)")
    add("--min-lr", type=float, default=0.0, help="at the end of a cosine (default %(default)s)")
    add("--lr-decay-style", choices=("cosine", "constant", "linear"), default="cosine")
    add("--lr-warmup-fraction", type=float, default=0.01, help="share of steps that warm up (default %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="default %(default)s")
    add("--adam-beta2", type=float, default=0.95, help="default %(default)s")
    add("--clip-grad", type=float, default=1.0, help="norm gradients are clipped to (default %(default)s)")
    add = parser.add_argument_group("run").add_argument
    add("--tensor-model-parallel-size", type=int, default=1)
    add("--pipeline-model-parallel-size", type=int, default=1)
    add("--bf16", action="store_true", help="bfloat16 weights with fp32 main weights (default: fp32)")
    add("--recompute-granularity", choices=("full", "selective"), help="recompute activations to save memory")
    add("--save-interval", type=int, default=0, help="steps between checkpoints; 0: only at the end")
    add("--exit-interval", type=int, help="save and exit after this step, as if the job's time were up")
    add("--log-interval", type=int, default=10, help="steps between log lines (default %(default)s)")
    add("--seed", type=int, default=1234, help="of initial weights and data order (default %(default)s)")
    add("--distributed-timeout-minutes", type=float, default=10, help="a collective that hangs ends the run")
    parser.set_defaults(**defaults)


def check_args(args, problems=()):
    """Raise one InputError with everything wrong, `problems` included; fill in what depends on the world size."""
    rank, world_size, _ = runtime.ranks()
    model_parallel = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    if args.global_batch_size is None:
        args.global_batch_size = args.micro_batch_size * max(world_size // max(model_parallel, 1), 1)
    problems = [*problems, *runtime.check_parallelism(args, world_size)]
    for flag, smallest in (("seq_length", 2), ("train_iters", 1), ("log_interval", 1), ("save_interval", 0),
                           ("eval_interval", 0), ("eval_iters", 1), ("num_workers", 0), ("lr", 0), ("min_lr", 0),
                           ("weight_decay", 0), ("clip_grad", 0)):  # fmt: skip
        value = getattr(args, flag)
        if value is not None and not smallest <= value < math.inf:
            problems.append(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected at least {smallest}")
    shares = args.split.split(",")
    if len(shares) != 3 or not all(re.fullmatch(r"\d+(\.\d+)?", share) for share in shares) or float(shares[0]) <= 0:
        problems.append(f"--split {args.split}: expected three numbers like 99,1,0, the first above 0")
    for flag in ("lr_warmup_fraction", "adam_beta2"):
        if not 0 <= getattr(args, flag) < 1:
            problems.append(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected at least 0 and below 1")
    if args.min_lr > args.lr:
        problems.append(f"--min-lr {args.min_lr}: above --lr {args.lr}")
    if problems:
        if rank:
            raise SystemExit(1)  # one line is enough
        raise InputError("; ".join(problems))
    existing_folder(args.hf_model, "--hf-model")
    if not args.load and (Path(args.save) / checkpoint.TRACKER).is_file():
        raise InputError(
            f"--save {args.save}: holds checkpoints; go on from them with --load {args.save}, or choose another folder"
        )
    args.data_cache_path = args.data_cache_path or str(Path(args.save) / "data_cache")


def get_batch(iterator):
    """The next micro-batch on this rank's device: tokens, labels, loss_mask, position_ids, attention_mask (or None)."""
    batch = next(iterator)
    device = torch.cuda.current_device()
    tokens, labels, loss_mask = (batch[key].to(device, non_blocking=True) for key in ("tokens", "labels", "loss_mask"))
    position_ids = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    # Row-wise causal attention needs no mask; RoPE is relative, so entries need no positions of their own.
    several = "segments" in batch and bool((batch["segments"] > 0).any())
    mask = attention_mask(batch["segments"].to(device)) if several else None
    return tokens, labels, loss_mask, position_ids, mask


def forward_step(iterator, model):
    """One micro-batch: per-token losses [b, s], and the function that sums them (megatron.core's interface)."""
    tokens, labels, loss_mask, position_ids, mask = get_batch(iterator)
    losses = model(tokens, position_ids, mask, labels=labels)

    def loss_function(losses):
        # (sum, number of tokens, report): with calculate_per_token_loss, gradients are divided by the number of
        # tokens with loss in the whole global batch, however unequally micro-batches share them.
        total = (losses.float() * loss_mask).sum()
        tokens_with_loss = loss_mask.sum().int()
        return total, tokens_with_loss, {"loss": torch.stack([total.detach(), tokens_with_loss.float()])}

    return losses, loss_function


def run_batches(model, iterator, args, forward_only=False):
    """Forward (and backward) over one global batch: (sum of losses, tokens with loss), the same on every rank."""
    data_parallel = parallel_state.get_data_parallel_world_size()
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterator,
        model=[model],
        num_microbatches=args.global_batch_size // (args.micro_batch_size * data_parallel),
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        forward_only=forward_only,
    )
    # Only the last pipeline stage has losses: the sum over data-parallel ranks and stages is everybody's.
    total = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
    for report in reports:
        total += report["loss"]
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    torch.distributed.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    return total.tolist()


def batches(dataset, consumed, args):
    """An iterator over this rank's micro-batches of a dataset, from `consumed` samples on."""
    sampler = SequentialSampler(
        len(dataset),
        consumed,
        args.micro_batch_size,
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    return iter(
        torch.utils.data.DataLoader(
            dataset, batch_sampler=sampler, num_workers=args.num_workers, pin_memory=torch.cuda.is_available()
        )
    )


def set_up(args, shape):
    """(model, optimizer, scheduler) of this rank, weights loaded or initialised."""
    model = build_model(shape, args, args.seq_length)
    if not args.init_weights:
        load_hf_weights(model, args.hf_model, shape)
    config = model.config
    if args.bf16:
        model = Float16Module(config, model)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
    model.broadcast_params()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            lr=args.lr,
            min_lr=args.min_lr,
            weight_decay=args.weight_decay,
            adam_beta1=0.9,
            adam_beta2=args.adam_beta2,
            clip_grad=args.clip_grad,
            bf16=args.bf16,
            params_dtype=torch.bfloat16 if args.bf16 else torch.float32,
        ),
        [model],
    )
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=int(args.lr_warmup_fraction * args.train_iters),
        lr_decay_steps=args.train_iters,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.weight_decay,
        end_wd=args.weight_decay,
        wd_incr_steps=args.train_iters,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = model.no_sync
    return model, optimizer, scheduler


# What a resumed run must have in common with the run it goes on from.
UNCHANGED = (
    "data_path", "valid_data_path", "split", "seq_length", "packing", "global_batch_size", "seed", "train_iters",
    "lr", "min_lr", "lr_decay_style", "lr_warmup_fraction", "weight_decay", "adam_beta2",
)  # fmt: skip


def resume(args, model, optimizer, scheduler):
    """The step to go on from: that of the latest checkpoint under --load, or 0."""
    if not args.load or not (Path(args.load) / checkpoint.TRACKER).is_file():
        return 0
    iteration, folder = checkpoint.latest(args.load)
    if iteration == 0:  # weights from convert_hf.py to-megatron, without an optimizer
        state = checkpoint.load(folder, checkpoint.sharded_state(model))
        checkpoint.unwrap(model).load_state_dict(state["model"])
        optimizer.reload_model_params()
        return 0
    state = checkpoint.load(folder, checkpoint.sharded_state(model, optimizer, scheduler, is_loading=True))
    saved = state["arguments"]
    changed = [f"--{name.replace('_', '-')} {getattr(args, name)} ({saved.get(name)})" for name in UNCHANGED
               if getattr(args, name) != saved.get(name)]  # fmt: skip
    if changed:
        raise InputError(
            f"--load {folder}: was trained with other values of {', '.join(changed)}, which decide data order and "
            "learning rate; give the same, or start anew from its weights (convert_hf.py to-hf)"
        )
    checkpoint.unwrap(model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    runtime.log(f"resumed from {folder}")
    return iteration


def evaluate(model, dataset, args):
    """The held-out loss per token with loss, over --eval-iters global batches."""
    model.eval()
    iterator = batches(dataset, 0, args)
    total = tokens = 0.0
    with torch.no_grad():
        for _ in range(min(args.eval_iters, len(dataset) // args.global_batch_size)):
            losses, count = run_batches(model, iterator, args, forward_only=True)
            total, tokens = total + losses, tokens + count
    model.train()
    return total / max(tokens, 1)


def record(args):
    """What a run was made from: resolved arguments, versions, and the fingerprint of each dataset."""
    packages = ("torch", "megatron-core", "numpy", "safetensors")
    return {
        "arguments": vars(args),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "data": {prefix: read_json(f"{prefix}.json")["xxh3_128"] for prefix in data_prefixes(args)},
    }


def train(args):
    """Train on args.data_path: the loop of pre-training and fine-tuning. The process group must be there."""
    shape = read_shape(args.hf_model)
    rows, held_out_rows = args.train_iters * args.global_batch_size, args.eval_iters * args.global_batch_size
    train_data, valid_data = build_datasets(args, shape.vocab_size, rows, held_out_rows if args.eval_interval else 0)
    if len(train_data) < rows:
        raise InputError(
            f"--train-iters {args.train_iters}: needs {rows} rows, one epoch of --data-path has {len(train_data)}; "
            "give fewer steps, or weights to repeat the data"
        )
    if valid_data is not None and len(valid_data) < args.global_batch_size:
        runtime.log(f"no held-out loss: {len(valid_data)} held-out rows are less than one global batch")
        valid_data = None
    model, optimizer, scheduler = set_up(args, shape)
    done = resume(args, model, optimizer, scheduler)
    runtime.on_first_rank(lambda: write_json(Path(args.save) / "run.json", record(args)))
    parameters = sum(p.numel() for p in model.parameters())
    runtime.log(f"{parameters:,} parameters on the first rank; step {done} of {args.train_iters}")

    iterator = batches(train_data, done * args.global_batch_size, args)
    last = min(args.train_iters, args.exit_interval or args.train_iters)
    with Metrics(args.save, done, runtime.is_first_rank()) as metrics:

        def hold_out(iteration):
            if valid_data is not None and args.eval_interval:
                metrics.add(iteration, valid_loss=evaluate(model, valid_data, args))

        if done == 0:
            hold_out(0)
        model.train()
        start = time.perf_counter()
        for iteration in range(done + 1, last + 1):
            model.zero_grad_buffer()
            optimizer.zero_grad()
            loss_sum, tokens = run_batches(model, iterator, args)
            _, grad_norm, _ = optimizer.step()
            lr = optimizer.param_groups[0]["lr"]
            scheduler.step(increment=1)

            seconds = time.perf_counter() - start
            speed = args.global_batch_size * args.seq_length / seconds  # places in rows, padding included
            metrics.add(iteration, loss=loss_sum / max(tokens, 1), tokens=int(tokens), lr=lr, grad_norm=grad_norm,
                        tokens_per_second=speed)  # fmt: skip
            if iteration % args.log_interval == 0 or iteration == last:
                metrics.log(iteration, args.train_iters)
            if iteration == args.train_iters or (args.eval_interval and iteration % args.eval_interval == 0):
                hold_out(iteration)
            if iteration == last or (args.save_interval and iteration % args.save_interval == 0):
                state = checkpoint.sharded_state(model, optimizer, scheduler)
                checkpoint.save(args.save, iteration, state, vars(args))
            start = time.perf_counter()
    runtime.log(f"saved {checkpoint.folder_of(args.save, max(done, last))}")


def main():
    args = get_args()
    runtime.initialize(args)
    train(args)
    runtime.shutdown()


if __name__ == "__main__":
    run(main)
