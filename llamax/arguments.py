"""The options that pre-training and fine-tuning share, and what must hold among them. Names are Megatron's."""

import math
import re
from pathlib import Path

from llamax import checkpoint, runtime
from llamax.data import PACKING
from llamax.files import InputError, existing_folder
from llamax.ranks import ranks


def add_training_arguments(parser, **defaults):
    """The options of pre-training and fine-tuning alike; `defaults` replace those below."""
    add = parser.add_argument_group("model").add_argument
    add("--hf-model", required=True, metavar="DIR", help="Hugging Face Llama folder: config.json, safetensors")
    add("--init-weights", action="store_true", help="start from random weights, not from those of --hf-model")
    add("--pretrained-checkpoint", metavar="DIR", help="start from the weights of this --save folder, or of an "
        "iter_… of it, not --hf-model's")  # fmt: skip
    add = parser.add_argument_group("batches").add_argument
    add("--seq-length", type=int, default=512, help="tokens a row (default %(default)s)")
    add("--packing", choices=PACKING, default="across", help="how entries fill rows: joined end to end with attention "
        "across them, whole with attention inside each, or one entry a row (default %(default)s)")  # fmt: skip
    add("--micro-batch-size", type=int, default=32, help="rows a rank computes at once (default %(default)s)")
    add("--global-batch-size", type=int, help="examples an optimizer step (default %(default)s)"
        if "global_batch_size" in defaults else "rows an optimizer step (default: one micro-batch a rank)")  # fmt: skip
    add("--train-iters", type=int, required="train_iters" not in defaults, help="optimizer steps in all")
    add("--eval-interval", type=int, default=100, help="steps between held-out losses, 0: never (default %(default)s)")
    add("--eval-iters", type=int, default=10, help="global batches a held-out loss (default %(default)s)")
    add("--num-workers", type=int, default=0, help="processes a rank that read data (default %(default)s: none)")
    add("--data-cache-path", metavar="DIR", help="where dataset indices are cached (default: SAVE/data_cache)")
    add = parser.add_argument_group("optimizer").add_argument
    add("--lr", type=float, default=2e-5, help="peak learning rate of AdamW (default %(default)s)")
    add("--min-lr", type=float, default=0.0, help="at the end of a cosine (default %(default)s)")
    add("--lr-decay-style", choices=("cosine", "constant", "linear"), default="cosine")
    add("--lr-decay-iters", type=int, help="steps of the schedule (default: --train-iters)")
    add("--lr-warmup-fraction", type=float, default=0.01, help="share of them that warms up (default %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="default %(default)s")
    add("--adam-beta2", type=float, default=0.95, help="default %(default)s")
    add("--clip-grad", type=float, default=1.0, help="norm gradients are clipped to, 0: never (default %(default)s)")
    add("--loss-spike-factor", type=float, default=10, help="skip a step whose loss is more than so many times the "
        "median of the last 128; 0: none (default %(default)s)")  # fmt: skip
    add("--grad-spike-factor", type=float, default=100, help="the same for the gradient norm, which is clipped besides "
        "(default %(default)s)")  # fmt: skip
    add("--max-skipped-steps", type=int, default=10, help="skipped steps in a row that end the run "
        "(default %(default)s)")  # fmt: skip
    add = parser.add_argument_group("parallelism, memory and speed").add_argument
    add("--tensor-model-parallel-size", type=int, default=1)
    add("--pipeline-model-parallel-size", type=int, default=1)
    add("--context-parallel-size", type=int, default=1, help="ranks that share a row (Transformer Engine)")
    add("--sequence-parallel", action="store_true", help="tensor-parallel ranks share activations between layers, too")
    add("--use-distributed-optimizer", action="store_true", help="data-parallel ranks share the optimizer's state")
    add("--overlap-grad-reduce", action="store_true", help="reduce gradients during the backward pass")
    add("--overlap-param-gather", action="store_true", help="gather weights during the forward pass (distributed "
        "optimizer)")  # fmt: skip
    add("--bf16", action="store_true", help="bfloat16 weights with fp32 main weights (default: fp32)")
    add("--fp8-format", choices=("e4m3", "hybrid"), help="matrix products in 8 bits (Transformer Engine)")
    add("--recompute-granularity", choices=("full", "selective"), help="recompute activations to save memory: "
        "of whole layers, or of attention alone, which saves little")  # fmt: skip
    add = parser.add_argument_group("run").add_argument
    add("--save", required=True, metavar="DIR", help="checkpoints, metrics and pictures go here")
    add("--load", metavar="DIR", help="go on from the newest checkpoint in this --save folder, if it has one")
    add("--save-interval", type=int, default=0, help="steps between checkpoints; 0: only at the end")
    add("--save-total-limit", type=int, default=0, metavar="N", help="keep the newest N checkpoints; 0: all")
    add("--async-save", action="store_true", help="write checkpoints in the background")
    add("--exit-interval", type=int, help="save and exit after this step, as if the job's time were up")
    add("--log-interval", type=int, default=10, help="steps between log lines (default %(default)s)")
    add("--peak-tflops", type=float, help="of one GPU, for MFU (default: known for the usual ones)")
    add("--wandb-project", help="log to this project of Weights & Biases as well (pip install wandb)")
    add("--seed", type=int, default=1234, help="of initial weights and data order (default %(default)s)")
    add("--distributed-timeout-minutes", type=float, default=10, help="a step or collective that takes longer ends "
        "the run (default %(default)s)")  # fmt: skip
    parser.set_defaults(**defaults)


def add_planning_arguments(parser):
    """The options of a dry run."""
    add = parser.add_argument_group("planning").add_argument
    add("--dry-run", type=int, nargs="?", const=0, metavar="GPUS", help="only print parameters, memory a GPU, tokens, "
        "steps and time on so many GPUs (default: as many as processes were started)")  # fmt: skip
    add("--gpu-memory", type=float, default=80, metavar="GIB", help="of one GPU (default %(default)s)")
    add("--mfu", type=float, default=0.4, help="share of --peak-tflops (an A100's 312, if not given) that is reached "
        "(default %(default)s)")  # fmt: skip


def check_args(args, problems=(), rounds_batch=False):
    """Raise one InputError with everything wrong, `problems` included; fill in what depends on the world size.

    Args:
        rounds_batch: the caller will make of --global-batch-size what the ranks compute at once, or a multiple.
    """
    rank, world_size, _ = ranks()
    planning = getattr(args, "dry_run", None) is not None
    if planning:
        rank, world_size = 0, args.dry_run or world_size
    args.world_size = world_size
    args.lr_decay_iters = args.lr_decay_iters or args.train_iters
    model_parallel = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    if args.global_batch_size is None:
        args.global_batch_size = args.micro_batch_size * max(world_size // max(model_parallel, 1), 1)
    problems = [*problems, *_out_of_range(args), *_parallel_problems(args, planning, rounds_batch)]
    if problems:
        if rank:
            raise SystemExit(1)  # one line is enough
        raise InputError("; ".join(problems))
    existing_folder(args.hf_model, "--hf-model")
    if not planning and not args.load and checkpoint.iterations(args.save):
        raise InputError(
            f"--save {args.save}: holds checkpoints; go on from them with --load {args.save}, or choose another folder"
        )
    args.data_cache_path = args.data_cache_path or str(Path(args.save) / "data_cache")


def _out_of_range(args):
    problems = []
    for flag, smallest in (("seq_length", 2), ("micro_batch_size", 1), ("global_batch_size", 1), ("train_iters", 1),
                           ("lr_decay_iters", 1), ("log_interval", 1), ("save_interval", 0), ("save_total_limit", 0),
                           ("eval_interval", 0), ("eval_iters", 1), ("num_workers", 0), ("lr", 0), ("min_lr", 0),
                           ("weight_decay", 0), ("clip_grad", 0), ("loss_spike_factor", 0), ("grad_spike_factor", 0),
                           ("max_skipped_steps", 1)):  # fmt: skip
        value = getattr(args, flag)
        if value is not None and not smallest <= value < math.inf:
            problems.append(f"--{flag.replace('_', '-')} {value}: expected at least {smallest}")
    for flag in ("distributed_timeout_minutes", "gpu_memory", "peak_tflops", "mfu"):
        value = getattr(args, flag, None)
        if value is not None and not 0 < value < math.inf:
            problems.append(f"--{flag.replace('_', '-')} {value}: expected above 0")
    shares = args.split.split(",")
    if len(shares) != 3 or not all(re.fullmatch(r"\d+(\.\d+)?", share) for share in shares) or float(shares[0]) <= 0:
        problems.append(f"--split {args.split}: expected three numbers like 99,1,0, the first above 0")
    for flag in ("lr_warmup_fraction", "adam_beta2"):
        if not 0 <= getattr(args, flag) < 1:
            problems.append(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected at least 0 and below 1")
    if args.min_lr > args.lr:
        problems.append(f"--min-lr {args.min_lr}: above --lr {args.lr}")
    return problems


def _parallel_problems(args, planning, rounds_batch):
    """What is wrong among parallel sizes, batch sizes and the options that need them."""
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    context, micro = args.context_parallel_size, args.micro_batch_size
    if min(tensor, pipeline, context) < 1:
        return ["--tensor-, --pipeline-model-parallel-size and --context-parallel-size: expected at least 1"]
    problems = []
    model_parallel = tensor * pipeline * context
    if args.world_size % model_parallel:
        problems.append(
            f"--tensor-model-parallel-size {tensor} × --pipeline-model-parallel-size {pipeline} × "
            f"--context-parallel-size {context}: do not divide the {args.world_size} process(es) started"
        )
    else:
        data_parallel = args.world_size // model_parallel
        batch = args.global_batch_size
        if not rounds_batch and min(micro, batch) >= 1 and batch % (micro * data_parallel):
            problems.append(
                f"--global-batch-size {batch}: expected a multiple of --micro-batch-size {micro} × {data_parallel} "
                "data-parallel rank(s)"
            )
    if args.sequence_parallel and args.seq_length % tensor:
        problems.append(f"--sequence-parallel: {tensor} tensor-parallel ranks do not divide --seq-length")
    if args.overlap_param_gather and not (args.use_distributed_optimizer and args.overlap_grad_reduce):
        problems.append("--overlap-param-gather: needs --use-distributed-optimizer and --overlap-grad-reduce")
    if context > 1 and args.packing == "inside":
        problems.append("--context-parallel-size: not with --packing inside; give across or none")
    if context > 1 and args.seq_length % (2 * context):
        problems.append(f"--context-parallel-size {context}: twice that does not divide --seq-length {args.seq_length}")
    for flag, wanted in (("--context-parallel-size", context > 1), ("--fp8-format", args.fp8_format)):
        if wanted and not planning and not runtime.has_transformer_engine():
            problems.append(f"{flag}: needs Transformer Engine on a GPU; pip install -r requirements-gpu.txt")
    return problems
