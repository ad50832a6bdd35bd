"""Sharded checkpoints: DIR/iter_0000100/ in torch_dist format, DIR/latest_checkpointed_iteration.txt beside them.

A checkpoint is written under a temporary name, at once or by a process in the background. When all ranks have written,
complete.json comes last, with the size and digest of every file, and the folder gets its name. Only such folders are
read, the newest whose files are what complete.json says. They can be read with other tensor-, pipeline- and
data-parallel sizes than they were saved with.
"""

import contextlib
import os
import pickle
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import xxhash
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.validation import StrictHandling
from torch.distributed.checkpoint.api import CheckpointException

from llamax.files import InputError, partial_path, read_json, remove_dead_partials, write_json, write_text
from llamax.runtime import is_first_rank, is_lost_peer, log, on_first_rank

TRACKER = "latest_checkpointed_iteration.txt"  # for people and scripts; what is read is decided by the folders
MARKER = "complete.json"
_READ_BYTES = 16 << 20


def folder_of(directory, iteration):
    return Path(directory) / f"iter_{iteration:07d}"


def step_of(folder):
    """The iteration of a checkpoint's folder by its name; None for other folders."""
    match = re.fullmatch(r"iter_(\d{7,})", Path(folder).name)
    return match and int(match[1])


def iterations(directory):
    """The iterations that have a folder in a --save directory, newest first, complete or not."""
    found = map(step_of, Path(directory).glob("iter_*"))
    return sorted((step for step in found if step is not None), reverse=True)


def newest(directory, flag="--load"):
    """(iteration, folder) of the newest complete and undamaged checkpoint, or None if there was never one.

    All ranks call it and share the reading. A damaged checkpoint is named and passed over; InputError if none is left.
    """
    listed = on_first_rank(lambda: (iterations(directory), (Path(directory) / TRACKER).is_file()))
    for iteration in listed[0]:
        folder = folder_of(directory, iteration)
        problem = damage(folder)
        if problem is None:
            return iteration, folder
        log(f"{flag} {folder}: {problem}; passed over")
    if any(listed):
        raise InputError(
            f"{flag} {directory}: has been trained in, but no complete and undamaged checkpoint is left there; bring "
            "one back, or start anew with another --save folder"
        )
    return None


def required(path, flag="--load"):
    """(iteration, folder): the `newest` of a --save directory, or the iter_… folder that `path` is; InputError if there
    is none or if that one is damaged."""
    step = step_of(path)
    found = newest(path, flag) if step is None else (step, Path(path))
    if found is None:
        raise InputError(f"{flag} {path}: holds no checkpoint; check the path")
    if step is not None and (problem := damage(found[1])):
        raise InputError(f"{flag} {path}: {problem}; give another checkpoint")
    return found


def damage(folder):
    """What is wrong with a checkpoint folder, in one line, or None. All ranks call it; each reads its share."""

    def read_marker():
        if not (folder / MARKER).is_file():
            return None, f"no {MARKER}, so it is not complete"
        try:
            files = {str(name): tuple(expected) for name, expected in read_json(folder / MARKER)["files"].items()}
        except (InputError, KeyError, TypeError, AttributeError):
            return None, f"{MARKER} cannot be read"
        return files, None

    files, problem = on_first_rank(read_marker)
    if problem:
        return problem
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    problems = [None] * ranks
    mine = (_file_damage(folder / name, files[name]) for name in sorted(files)[rank::ranks])
    torch.distributed.all_gather_object(problems, next(filter(None, mine), None))
    return next(filter(None, problems), None)


def _file_damage(path, expected):
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != expected[0]:
        return f"{path.name} has {path.stat().st_size} bytes, {MARKER} says {expected[0]}"
    if _size_and_digest(path) != expected:
        return f"{path.name} is not the file that was written: its digest differs"
    return None


def _size_and_digest(path):
    """(bytes, xxh3_128) of a file."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
        return file.tell(), digest.hexdigest()


def unwrap(model):
    """The module inside DistributedDataParallel and Float16Module, whose keys do not depend on how it is trained."""
    while hasattr(model, "module"):
        model = model.module
    return model


def sharded_state(model, optimizer=None, scheduler=None, is_loading=False):
    """The state dict that dist_checkpointing saves and fills: of the model alone, or of a training run."""
    state = {"model": unwrap(model).sharded_state_dict()}
    if optimizer is not None:
        # The distributed optimizer's default sharding cannot be read with another layout, or at all (0.16.1). Gathered
        # in main memory on one data-parallel rank; otherwise all would gather it, on the GPU, where it may not fit.
        metadata = {
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": True,
        }
        state["optimizer"] = optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=metadata)
        state["scheduler"] = scheduler.state_dict()
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        state["rng"] = ShardedObject("rng", _generators(), (ranks,), (rank,))
    return state


def _generators():
    """The state of this rank's random generators. A Llama draws nothing while it trains; what is added to it may."""
    tracker = tensor_parallel.get_cuda_rng_tracker().get_states()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "tracker": {name: state for name, state in tracker.items() if isinstance(state, torch.Tensor)},
    }


def restore_generators(state):
    """Set what `_generators` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if state["tracker"]:
        tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])


class Saver:
    """Saves the checkpoints of a run into a --save directory; all ranks call its methods alike.

    Args:
        keep: how many of the newest checkpoints stay; 0: all.
        background: `save` returns when the state has been copied; `poll` completes what has been written.
    """

    def __init__(self, directory, keep=0, background=False):
        self.directory, self.keep, self.background = Path(directory), keep, background
        self.queue = AsyncCallsQueue()
        self.pending = None  # (iteration, folder under its temporary name)
        filesystem_async._results_queue = _Results()

    def save(self, iteration, state):
        """Save what `sharded_state` gave, with further plain values, as iteration `iteration`."""
        self.poll(wait=True)
        self.pending = iteration, on_first_rank(lambda: self._new_folder(iteration))
        strategy = FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(), parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        with self._naming_failures():
            request = dist_checkpointing.save(
                {**state, "iteration": iteration}, str(self.pending[1]), strategy, async_sharded_save=True
            )
            if request.async_fn is not None:  # None: nothing to write on this rank
                request = request._replace(async_fn=partial(_write_and_digest, request.async_fn))
            if self.background:
                self.queue.schedule_async_request(request)
                return
            request.execute_sync()
        self._publish()

    def save_weights(self, iteration, write):
        """Save as iteration `iteration` the sharded tensors that write(folder) writes, on one process."""
        self.pending = iteration, self._new_folder(iteration)
        with self._naming_failures():
            dist_checkpointing.save({"iteration": iteration}, str(self.pending[1]))
            (self.pending[1] / ".metadata").unlink()  # of no tensors yet
            write(self.pending[1])
            files = {path.name: _size_and_digest(path) for path in self.pending[1].glob("*.distcp")}
            write_json(self.pending[1] / "0.digests", files)
        self._publish()

    def poll(self, wait=False):
        """Complete a save in the background if all ranks have written it; with `wait`, when they have."""
        if self.pending is None:
            return
        with self._naming_failures():
            done = self.queue.maybe_finalize_async_calls(blocking=wait)
        if done:
            self._publish()

    def _new_folder(self, iteration):
        """Named after this process: a writer that outlived a killed rank can still be writing into its own."""
        final = folder_of(self.directory, iteration)
        folder = partial_path(final)
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.glob(".iter_*.partial"):
            remove_dead_partials(path.with_name(re.match(r"\.(iter_\d+(\.old)?)", path.name)[1]))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    @contextlib.contextmanager
    def _naming_failures(self):
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:  # the last is raised on every rank
            if is_lost_peer(error):
                raise
            if not is_first_rank():
                sys.exit(1)  # one line is enough
            self._fail(str(error))

    def _fail(self, reason):
        iteration, folder = self.pending
        free = shutil.disk_usage(folder).free
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"--save {folder_of(self.directory, iteration)}: could not be written, {free / 1e6:.1f} MB were left there "
            f"({reason.strip().splitlines()[-1][:200]}); free some space and run the same command again, with --load "
            "to go on from the last checkpoint"
        ) from None

    def _publish(self):
        iteration, folder = self.pending
        on_first_rank(lambda: self._complete(iteration, folder))
        self.pending = None

    def _complete(self, iteration, folder):
        files = {}
        try:
            for path in folder.glob("*.digests"):
                files.update(read_json(path))
                path.unlink()
            for path in folder.iterdir():
                if path.name not in files:
                    if path.suffix == ".distcp":
                        self._fail(f"{path.name} has no digest")
                    files[path.name] = _size_and_digest(path)
            write_json(folder / MARKER, {"iteration": iteration, "files": files})
            final = folder_of(self.directory, iteration)
            if final.exists():  # a damaged one, passed over when the run was resumed
                _remove(final)
            folder.rename(final)
            write_text(self.directory / TRACKER, f"{iteration}\n")
        except OSError as error:
            self._fail(str(error))
        for old in iterations(self.directory)[self.keep :] if self.keep else []:
            _remove(folder_of(self.directory, old))


def _remove(folder):
    """Remove a checkpoint; one that is half removed has no name by which it could be read."""
    gone = partial_path(folder.with_name(f"{folder.name}.old"))
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


class _Results:
    """What the process that writes hands back to its rank, through a file that both have open.

    megatron.core uses a manager: one more process a rank, which imports the script again and outlives a killed rank.
    """

    def __init__(self):
        self.file = tempfile.TemporaryFile()

    def put(self, results):
        self.file.seek(0)
        self.file.truncate()
        pickle.dump(results, self.file)
        self.file.flush()

    def get_nowait(self):
        self.file.seek(0)
        try:
            return pickle.load(self.file)
        except EOFError:
            return RuntimeError("the process that writes has ended before it was done")
        finally:
            self.file.seek(0)
            self.file.truncate()


def _write_and_digest(write, rank, buckets, results):
    """Write this rank's files, then their digests (while the files are still in the page cache)."""
    write(rank, buckets, results)
    with contextlib.suppress(OSError):  # a full disk: `results` tells, or the missing digest
        digests = {os.path.basename(bucket[0]): _size_and_digest(bucket[0]) for bucket in buckets}
        write_json(Path(buckets[0][0]).with_name(f"{rank}.digests"), digests)


def load_plain(folder):
    """The plain values of a checkpoint (all but tensors): iteration, what the run was saved with."""
    with _naming_mismatch(folder):
        return dist_checkpointing.load_common_state_dict(str(folder))


def load(folder, state):
    """Fill `state` (from `sharded_state`) from a checkpoint folder; returns the whole, with the plain values."""
    with _naming_mismatch(folder):
        return dist_checkpointing.load(state, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)


@contextlib.contextmanager
def _naming_mismatch(folder):
    try:
        yield
    except (dist_checkpointing.core.CheckpointingException, CheckpointException, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300] if is_first_rank() else ""
        raise InputError(f"--load {folder}: not a checkpoint of this model ({reason})") from error
