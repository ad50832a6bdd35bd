"""What a training run leaves to look at: metrics.jsonl, TensorBoard events, log lines, loss.png."""

import contextlib
import json
import math
import secrets
import time
from pathlib import Path

from llamax.files import InputError, replacing, write_text


class Metrics:
    """Collects numbers by iteration on the first rank; elsewhere every method does nothing.

    metrics.jsonl has one object a line: {"iteration", …numbers}; what is not finite is null. A resumed run drops what
    was written after the checkpoint it goes on from, so that every iteration stands there once.
    """

    def __init__(self, args, done, active):
        self.active, self.folder, self.latest = active, Path(args.save), {}
        self.start = time.monotonic()
        self.first = done
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = self.folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["iteration"] <= done] if done else []
        with replacing(self.path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self.file = open(self.path, "a", encoding="utf-8")
        self.board = SummaryWriter(self.folder / "tensorboard", purge_step=done + 1)
        self.wandb = _wandb_run(args) if args.wandb_project else None

    def add(self, iteration, numbers):
        """Record numbers of an iteration, {name: number}; one that is known already is not recorded again."""
        if not self.active:
            return
        self.latest.update(numbers)
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        self.file.flush()
        for name, value in numbers.items():
            self.board.add_scalar(name, value, iteration)
        if self.wandb:
            self.wandb.log(numbers, step=iteration)
        if "valid_loss" in numbers:
            print(f"step {iteration:>7}  held-out loss {numbers['valid_loss']:.4f}", flush=True)

    def log(self, iteration, last):
        """Print a line of the latest numbers and the time left."""
        if not self.active:
            return
        n = self.latest
        left = (time.monotonic() - self.start) / max(iteration - self.first, 1) * (last - iteration)
        mfu = f" ({n['mfu']:.1%} MFU)" if "mfu" in n else ""
        skipped = f"  {n['skipped_steps']} skipped" if n["skipped_steps"] else ""
        print(
            f"step {iteration:>7}/{last}  loss {n['loss']:.4f}  lr {n['lr']:.2e}  grad norm {n['grad_norm']:.3f}  "
            f"{n['tokens_per_second']:,.0f} tokens/s  {n['tflops']:.3g} TFLOP/s a rank{mfu}{skipped}  "
            f"{left / 60:.1f} min left",
            flush=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, exception, *details):
        if not self.active:
            return
        # After a failure (a full disk, say) these may fail too: the first error is the one to show.
        with contextlib.suppress(OSError) if exception else contextlib.nullcontext():
            self.file.close()
            self.board.close()
            draw_losses(read_metrics(self.path), self.folder / "loss.png")
        if self.wandb:
            self.wandb.finish(exit_code=int(exception is not None))


def _wandb_run(args):
    """The Weights & Biases run of this --save folder: the same one when training is resumed."""
    try:
        import wandb
    except ImportError:
        raise InputError("--wandb-project: needs wandb; pip install wandb") from None
    save = Path(args.save).resolve()
    if not (save / "wandb_id.txt").is_file():
        write_text(save / "wandb_id.txt", secrets.token_hex(8))
    number = (save / "wandb_id.txt").read_text(encoding="utf-8")
    return wandb.init(
        project=args.wandb_project, name=save.name, id=number, resume="allow", dir=save, config=vars(args)
    )


def read_metrics(path):
    """The rows of a metrics.jsonl, a last one cut short by a kill left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def draw_losses(rows, path):
    """The loss curve as a picture: training and held-out loss per token over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, label, style in (("loss", "training", "-"), ("valid_loss", "held-out", "o-")):
        points = [(row["iteration"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)
