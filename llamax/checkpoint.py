"""Sharded checkpoints: DIR/iter_0000100/ in torch_dist format, DIR/latest_checkpointed_iteration.txt beside them.

A checkpoint is saved under a temporary name and renamed when it is complete; the tracker file is written after
that. It can be read with other tensor-, pipeline- and data-parallel sizes than it was saved with.
"""

import shutil
import sys
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from llamax.files import InputError, write_text
from llamax.runtime import is_first_rank, on_first_rank

TRACKER = "latest_checkpointed_iteration.txt"


def folder_of(directory, iteration):
    return Path(directory) / f"iter_{iteration:07d}"


def latest(directory):
    """(iteration, folder) of the latest complete checkpoint in a --save directory; InputError if there is none."""
    tracker = Path(directory) / TRACKER
    if not tracker.is_file():
        raise InputError(f"--load {directory}: no {TRACKER}, so no complete checkpoint; check the path")
    content = tracker.read_text(encoding="utf-8").strip()
    folder = folder_of(directory, int(content)) if content.isdigit() else None
    if folder is None or not (folder / "metadata.json").is_file():
        raise InputError(f"--load {tracker}: says {content[:40]!r}, but there is no such complete checkpoint beside it")
    return int(content), folder


def unwrap(model):
    """The module inside DistributedDataParallel and Float16Module, whose keys do not depend on how it is trained."""
    while hasattr(model, "module"):
        model = model.module
    return model


def sharded_state(model, optimizer=None, scheduler=None, is_loading=False):
    """The state dict that dist_checkpointing saves and fills."""
    state = {"model": unwrap(model).sharded_state_dict()}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(state, is_loading=is_loading)
        state["scheduler"] = scheduler.state_dict()
    return state


def save(directory, iteration, state, arguments):
    """Save a checkpoint of `sharded_state` and `arguments` (a dict of plain values) as iteration `iteration`."""
    final = folder_of(directory, iteration)
    partial = final.with_name(f".{final.name}.partial")

    def prepare():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def publish():
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        write_text(Path(directory) / TRACKER, f"{iteration}\n")

    on_first_rank(prepare)
    try:
        dist_checkpointing.save({**state, "iteration": iteration, "arguments": arguments}, str(partial))
    except (OSError, RuntimeError, CheckpointException) as error:  # the last is raised on every rank
        if not is_first_rank():
            sys.exit(1)  # one line is enough
        reason = str(error).strip().splitlines()[-1][:200]
        free = shutil.disk_usage(partial).free
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            f"--save {final}: could not be written, {free / 1e6:.1f} MB were left there ({reason}); free some space "
            "and run the same command again, with --load to go on from the last checkpoint"
        ) from None
    torch.distributed.barrier()
    on_first_rank(publish)


def load(folder, state):
    """Fill `state` (from `sharded_state`) from a checkpoint folder; returns the whole, with iteration and arguments."""
    try:
        return dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    except (dist_checkpointing.core.CheckpointingException, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300] if is_first_rank() else ""
        raise InputError(f"--load {folder}: not a checkpoint of this model ({reason})") from error
