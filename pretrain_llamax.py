"""Continual pre-training of a Llama on megatron.core (LLaMAX, section 2.1; objective: Eq. 1).

    # two CPU processes, a toy
    torchrun --nproc-per-node 2 pretrain_llamax.py --hf-model toy/hf --init-weights --data-path 1 data/a 2 data/b \\
        --save work/run --seq-length 64 --micro-batch-size 32 --global-batch-size 64 --train-iters 100 --lr 1e-3
    # one node of GPUs: the same with --bf16 and --nproc-per-node 8; a cluster: sbatch slurm/pretrain.sh

`--data-path W1 P1 W2 P2 …` is Megatron's: dataset prefixes with the share of samples each gives. `--hf-model` names a
Hugging Face folder: the model's shape comes from its config.json, its weights from its safetensors files, unless
--init-weights asks for random ones or --pretrained-checkpoint for those of another run. Checkpoints, run.json (what
the run was made from), metrics.jsonl, TensorBoard events and loss.png go to --save; with --load the run goes on from
the newest checkpoint there, if there is one. SIGTERM and SIGUSR1 make it save and end with status 0.
"""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
import torch
from megatron.core import parallel_state
from megatron.core.datasets.utils import get_blend_from_list
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.utils import get_batch_on_this_cp_rank

from llamax import checkpoint, estimate, provenance
from llamax.arguments import add_planning_arguments, add_training_arguments, check_args
from llamax.data import (
    SequentialSampler,
    attention_mask,
    build_datasets,
    content_of,
    data_prefixes,
    order_digest,
    rows_per_source,
)
from llamax.files import InputError, Parser, read_json, run, write_json
from llamax.guard import Guard
from llamax.metrics import Metrics
from llamax.model import build_model, check_layout, read_shape
from llamax.optimizer import build_optimizer, gradient_norm, update, whole_parameters, wrap_model
from llamax.weights import load_hf_weights


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--data-path", nargs="+", required=True, help="[weight] prefix pairs, or prefixes alone")
    data.add_argument("--valid-data-path", nargs="+", help="held-out data in the same form (instead of --split)")
    data.add_argument("--split", default="99,1,0", help="train,valid,test shares of each dataset (default %(default)s)")
    add_training_arguments(parser)
    add_planning_arguments(parser)
    args = parser.parse_args()
    check_args(args)
    return args


def get_batch(iterator):
    """The next micro-batch on this rank's device: tokens, labels, loss_mask, position_ids, attention_mask, groups.

    All are [b, s] (with context parallelism, this rank's part of s), but for the mask: [b, 1, s, s] or None.
    """
    device = torch.cuda.current_device()
    batch = {key: tensor.to(device, non_blocking=True) for key, tensor in next(iterator).items()}
    # Row-wise causal attention needs no mask; RoPE is relative, so entries need no positions of their own.
    segments = batch.pop("segments", None)
    several = segments is not None and bool((segments > 0).any())
    batch["position_ids"] = torch.arange(batch["tokens"].shape[1], device=device).expand_as(batch["tokens"])
    batch = get_batch_on_this_cp_rank(batch)
    mask = attention_mask(segments) if several else None
    return batch["tokens"], batch["labels"], batch["loss_mask"], batch["position_ids"], mask, batch.get("groups")


def forward_step(iterator, model):
    """One micro-batch: per-token losses [b, s], and the function that sums them (megatron.core's interface)."""
    tokens, labels, loss_mask, position_ids, mask, groups = get_batch(iterator)
    losses = model(tokens, position_ids, mask, labels=labels)

    def loss_function(losses):
        # (sum, number of tokens, report): with calculate_per_token_loss, gradients are divided by the number of
        # tokens with loss in the whole global batch, however unequally micro-batches share them.
        losses = losses.float() * loss_mask
        report = torch.stack([losses.detach(), loss_mask], dim=-1).view(-1, 2)
        return losses.sum(), loss_mask.sum().int(), {"sums": sums_by_group(report, groups)}

    return losses, loss_function


def sums_by_group(values, groups):
    """Sums of `values` [n, 2] for each of `groups` (int, n in all; -1: none): [groups, 2]; without groups [1, 2]."""
    if groups is None:
        return values.sum(dim=0, keepdim=True)
    sums = values.new_zeros(int(groups.max()) + 2, 2)
    return sums.index_add_(0, groups.reshape(-1) + 1, values)[1:]


def run_batches(model, iterator, args, groups=1, forward_only=False):
    """Forward (and backward) over one global batch: (sum of losses, tokens with loss) of each group, [groups, 2], the
    same on every rank."""
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
    total = torch.zeros(groups, 2, dtype=torch.float64, device=torch.cuda.current_device())
    for report in reports:
        total[: len(report["sums"])] += report["sums"]
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    torch.distributed.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    return total


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


def datasets(args, shape):
    """(training data, held-out data or None, names of the held-out groups), as long as the run needs them."""
    rows, held_out_rows = args.train_iters * args.global_batch_size, args.eval_iters * args.global_batch_size
    held_out_rows = held_out_rows if args.eval_interval else 0
    train_data, valid_data, groups = build_datasets(args, shape.vocab_size, rows, held_out_rows)
    if len(train_data) < rows:
        raise InputError(
            f"--train-iters {args.train_iters}: needs {rows} rows, one epoch of --data-path has {len(train_data)}; "
            "give fewer steps, or weights to repeat the data"
        )
    if valid_data is not None and len(valid_data) < args.global_batch_size:
        runtime.log(f"no held-out loss: {len(valid_data)} held-out rows are less than one global batch")
        valid_data = None
    return train_data, valid_data, groups


def set_up(args, shape):
    """(model, optimizer, scheduler) of this rank, weights loaded or initialised."""
    model = build_model(shape, args, args.seq_length)
    if not args.init_weights and not args.pretrained_checkpoint:
        load_hf_weights(model, args.hf_model, shape)
    if args.bf16:
        model = Float16Module(model.config, model)
    model = wrap_model(model, args)
    return model, *build_optimizer(model, args)


def start_from_weights(args, model, optimizer):
    """Load the weights, and no more, of the newest checkpoint under --pretrained-checkpoint."""
    _, folder = checkpoint.required(args.pretrained_checkpoint, "--pretrained-checkpoint")
    state = checkpoint.load(folder, checkpoint.sharded_state(model))
    checkpoint.unwrap(model).load_state_dict(state["model"])
    optimizer.reload_model_params()
    runtime.log(f"weights of {folder}")


# What a resumed run must have in common with the run it goes on from, beside its data: what decides the order of rows,
# the learning rate and the form of the optimizer's state.
UNCHANGED = (
    "split", "seq_length", "packing", "global_batch_size", "seed", "lr", "min_lr", "lr_decay_style", "lr_decay_iters",
    "lr_warmup_fraction", "weight_decay", "adam_beta2", "use_distributed_optimizer", "bf16",
)  # fmt: skip


def blends(args):
    """Weight and content of each dataset, wherever it lies: what decides, with the seed, the order of rows."""
    found = {}
    for flag, path in (("--data-path", args.data_path), ("--valid-data-path", args.valid_data_path)):
        if path:
            prefixes, weights = get_blend_from_list(path)
            contents = [content_of(read_json(f"{prefix}.json")) for prefix in prefixes]
            found[flag] = [contents, weights]
    return found


def check_resume(args, folder, saved, train_data):
    """Raise InputError where going on from a checkpoint would not be what an uninterrupted run does."""
    anew = "give the same, or start anew from its weights with --pretrained-checkpoint and another --save"
    if "run" not in saved:
        raise InputError(
            f"--load {folder}: holds weights only, nothing to go on from; start from them with --pretrained-checkpoint"
        )
    before, now = saved["run"], vars(args)
    changed = [f"--{name.replace('_', '-')} {now[name]} ({before['arguments'].get(name)})" for name in UNCHANGED
               if now[name] != before["arguments"].get(name)]  # fmt: skip
    changed += [f"{flag} (other datasets or weights)" for flag, blend in blends(args).items()
                if blend != before["blends"].get(flag)]  # fmt: skip
    if changed:
        raise InputError(
            f"--load {folder}: was trained with other values of {', '.join(changed)}, which decide data order and "
            f"learning rate; {anew}"
        )
    if order_digest(train_data, saved["iteration"] * args.global_batch_size) != before["order"]:
        raise InputError(
            f"--load {folder}: --train-iters {args.train_iters} ({before['arguments']['train_iters']}) takes other "
            f"numbers of epochs, which would change the order of the rows already trained on; {anew}"
        )


def resume(args, model, optimizer, scheduler, guard, train_data):
    """(step to go on from, whether its held-out loss is known), from the newest checkpoint of --load, or (0, False)."""
    found = checkpoint.newest(args.load) if args.load else None
    if found is None:
        if args.pretrained_checkpoint:
            start_from_weights(args, model, optimizer)
        return 0, False
    iteration, folder = found
    saved = checkpoint.load_plain(folder)
    runtime.on_first_rank(lambda: check_resume(args, folder, saved, train_data))
    state = checkpoint.sharded_state(model, optimizer, scheduler, is_loading=True)
    if saved["run"]["arguments"]["world_size"] != args.world_size:
        del state["rng"]  # each rank's own; with others there is no exact continuation of random draws
    state = checkpoint.load(folder, state)
    checkpoint.unwrap(model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    guard.load_state_dict(state["guard"])
    if "rng" in state:
        checkpoint.restore_generators(state["rng"])
    runtime.log(f"resumed from {folder}")
    return iteration, state["held_out"]


def evaluate(model, dataset, groups, args, interrupted):
    """Held-out losses per token with loss over --eval-iters global batches: {"valid_loss": all, "valid_loss/mono": of a
    kind, "valid_loss/mono/fr": of a language in it}; None if interrupted() was true in between."""
    total = torch.zeros(len(groups), 2, dtype=torch.float64)
    iterator = batches(dataset, 0, args)
    model.eval()
    with whole_parameters(model), torch.no_grad():
        for _ in range(min(args.eval_iters, len(dataset) // args.global_batch_size)):
            if interrupted():
                return None
            total += run_batches(model, iterator, args, len(groups), forward_only=True).cpu()
    model.train()
    sums = {}
    for (kind, language), row in zip(groups, total, strict=True):
        for name in ("valid_loss", f"valid_loss/{kind}", f"valid_loss/{kind}/{language}"):
            sums[name] = sums.get(name, 0) + row
    return {name: (loss / tokens).item() for name, (loss, tokens) in sums.items() if tokens}


def record(args):
    """What a run was made from: resolved arguments, versions, datasets, and the stages of the model it began with."""
    packages = ("torch", "megatron-core", "numpy", "safetensors")
    return {
        "script": Path(sys.argv[0]).name,
        "arguments": vars(args),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "data": provenance.of_data(*get_blend_from_list(args.data_path)),
        "valid_data": provenance.of_data(*get_blend_from_list(args.valid_data_path)) if args.valid_data_path else {},
        "stages": provenance.of_start(args),
    }


def work(args, shape):
    """(model TFLOPs a token on each rank, a GPU's peak in TFLOP/s or None); llamax/estimate.py says what is counted."""
    peak = args.peak_tflops
    if peak is None and torch.cuda.is_available():
        known = estimate.peak_flops(torch.cuda.get_device_name(), args.fp8_format is not None)
        peak = known and known / 1e12
    return estimate.flops_per_token(shape, args.seq_length) / args.world_size / 1e12, peak


def train_step(model, optimizer, scheduler, iterator, guard, args):
    """One optimizer step: (its numbers for the metrics, why its update was skipped or None)."""
    start = time.perf_counter()
    model.zero_grad_buffer()
    optimizer.zero_grad()
    [[loss, tokens]] = run_batches(model, iterator, args).tolist()
    loss /= max(tokens, 1)
    loss, grad_norm = runtime.of_first_rank(loss, gradient_norm(optimizer))
    lr = optimizer.param_groups[0]["lr"]
    skipped = guard.judge(loss, grad_norm)
    if not skipped:
        update(optimizer, grad_norm)
    scheduler.step(increment=1)
    speed = args.global_batch_size * args.seq_length / (time.perf_counter() - start)  # of places, padding included
    return {
        "loss": loss,
        "tokens": int(tokens),
        "lr": lr,
        "grad_norm": grad_norm,
        "skipped_steps": guard.skipped,
        "tokens_per_second": speed,
    }, skipped


def train(args, watchdog, stop):
    """Train on args.data_path: the loop of pre-training and fine-tuning, inside runtime.joined."""
    shape = read_shape(args.hf_model)
    watchdog.at("reading the data")
    train_data, valid_data, groups = datasets(args, shape)
    guard = Guard(args.loss_spike_factor, args.grad_spike_factor)
    watchdog.at("loading the model")
    model, optimizer, scheduler = set_up(args, shape)
    done, held_out = resume(args, model, optimizer, scheduler, guard, train_data)
    origin = {"arguments": vars(args), "blends": blends(args)}
    tflops_per_token, peak = work(args, shape)
    saver = checkpoint.Saver(args.save, args.save_total_limit, args.async_save)
    runtime.on_first_rank(lambda: write_json(Path(args.save) / provenance.RUN, record(args)))
    parameters = sum(p.numel() for p in model.parameters())
    runtime.log(f"{parameters:,} parameters on the first rank; step {done} of {args.train_iters}")

    def save(iteration):
        order = runtime.on_first_rank(lambda: order_digest(train_data, iteration * args.global_batch_size))
        plain = {"run": {**origin, "order": order}, "guard": guard.state_dict(), "held_out": held_out}
        with whole_parameters(model):
            saver.save(iteration, {**checkpoint.sharded_state(model, optimizer, scheduler), **plain})

    def due(interval):
        return interval and (iteration % interval == 0 or iteration == args.train_iters)

    def interrupted():
        watchdog.at(f"the held-out loss after step {iteration}")
        return stop.agreed()

    iteration = saved = done
    last = min(args.train_iters, args.exit_interval or args.train_iters)
    iterator = batches(train_data, done * args.global_batch_size, args)
    model.train()
    with Metrics(args, done, runtime.is_first_rank()) as metrics:
        while True:  # at the end of step `iteration`, which is 0 before the first
            if valid_data is not None and due(args.eval_interval) and not held_out:
                losses = evaluate(model, valid_data, groups, args, interrupted)
                if losses is not None:
                    metrics.add(iteration, losses)
                    held_out = True
            watchdog.at(f"the end of step {iteration}")
            ended = "done" if iteration >= last else stop.agreed()
            if iteration != saved and (ended or due(args.save_interval)):
                save(iteration)
                saved = iteration
            saver.poll(wait=bool(ended))
            if ended:
                break
            iteration, held_out = iteration + 1, False
            watchdog.at(f"step {iteration}")
            numbers, skipped = train_step(model, optimizer, scheduler, iterator, guard, args)
            numbers["tflops"] = numbers["tokens_per_second"] * tflops_per_token
            if peak:
                numbers["mfu"] = numbers["tflops"] / peak
            metrics.add(iteration, numbers)
            if skipped:
                runtime.log(f"step {iteration}: skipped, because {skipped}")
            if guard.in_a_row >= args.max_skipped_steps:
                saver.poll(wait=True)
                raise InputError(
                    f"--max-skipped-steps {args.max_skipped_steps}: so many in a row were skipped, step {iteration} "
                    f"because {skipped}; look at the data, or go on from step {saved} with a lower --lr"
                )
            if iteration % args.log_interval == 0 or iteration == last:
                rows = rows_per_source(train_data, iteration * args.global_batch_size)
                metrics.add(iteration, {f"consumed_tokens/{name}": n * args.seq_length for name, n in rows.items()})
                metrics.log(iteration, args.train_iters)
    runtime.log(
        f"{ended} at step {iteration}: {checkpoint.folder_of(args.save, saved) if saved else 'nothing to save'}"
    )


def dry_run(args):
    """Print what a run would need, without starting it."""
    manifests = [Path(f"{prefix}.json") for prefix in data_prefixes(args)]
    tokens = sum(read_json(path)["tokens"] for path in manifests) if all(path.is_file() for path in manifests) else None
    shape, peak = read_shape(args.hf_model), args.peak_tflops or 312  # an A100's
    check_layout(shape, args)
    text, problem = estimate.report(shape, args, args.world_size, args.gpu_memory, peak, args.mfu, tokens)
    print(text)
    if problem:
        raise InputError(f"--dry-run: {problem}")


def main():
    args = get_args()
    if args.dry_run is not None:
        dry_run(args)
        return
    with runtime.joined(args) as (watchdog, stop):
        train(args, watchdog, stop)


if __name__ == "__main__":
    run(main)
