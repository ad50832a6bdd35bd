"""A process of a training job: device, ranks, model-parallel groups, seeds; signals, hung and lost peers."""

import contextlib
import importlib.util
import logging
import os
import random
import re
import signal
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path

warnings.filterwarnings("ignore", module="megatron")  # of what is deliberately not installed: import this first
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of ShardedTensor, megatron's

import numpy as np
import torch

if not torch.cuda.is_available():
    # megatron.core wraps fused operations for torch.compile when it is imported, which takes a third of a process's
    # start; on the CPU none of them is called.
    compiler, torch.compile = torch.compile, lambda function=None, **options: function
from megatron.core import parallel_state, tensor_parallel

if not torch.cuda.is_available():
    torch.compile = compiler

from llamax.files import InputError, file_error
from llamax.ranks import ranks


def initialize(args):
    """Join the process group (NCCL on GPUs, gloo on CPUs) and build the model-parallel groups.

    Needs args.tensor_model_parallel_size, pipeline_model_parallel_size, seed, distributed_timeout_minutes and
    optionally context_parallel_size, all already checked against the world size.
    """
    rank, world_size, local_rank = ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "nccl"
    else:
        from llamax import cpu

        cpu.install()
        backend = "gloo"
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29500")
    if world_size == 1:  # no address to agree on, and no port to collide on
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        timeout = timedelta(minutes=args.distributed_timeout_minutes)
        torch.distributed.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    parallel_state.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        context_parallel_size=getattr(args, "context_parallel_size", 1),
    )
    seed_everything(args.seed)
    # megatron.core logs every parameter of every bucket at INFO, warns of what is deliberate here, and logs errors that
    # it raises as well.
    logging.getLogger("megatron").setLevel(logging.CRITICAL)


def seed_everything(seed):
    """Seed Python, NumPy, torch and megatron.core's model-parallel generators alike on every run."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
    else:
        tensor_parallel.random.initialize_rng_tracker(inference_rng_tracker=True)


def has_transformer_engine():
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def is_first_rank():
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def log(message):
    """Print on the first rank only."""
    if is_first_rank():
        print(message, flush=True)


def on_first_rank(function):
    """Call function() on the first rank only; every rank gets its result, or raises the InputError it raised."""
    outcome = [None, None]
    if is_first_rank():
        try:
            outcome[0] = function()
        except InputError as error:
            outcome[1] = str(error)
        except OSError as error:
            outcome[1] = file_error(error)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        if not is_first_rank():
            sys.exit(1)  # one line is enough
        raise InputError(outcome[1])
    return outcome[0]


def of_first_rank(*values):
    """The first rank's numbers, on every rank: what is decided by them is decided alike, to the last bit."""
    values = torch.tensor(values, dtype=torch.float64, device=torch.cuda.current_device())
    torch.distributed.broadcast(values, src=0)
    return values.tolist()


class StopSignals:
    """SIGTERM (preemption, scancel) and SIGUSR1 (Slurm's early warning) ask a run to save and end.

    A signal can reach ranks at different steps, or only some: `agreed` tells all of them at the same one.
    """

    def __init__(self):
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.received = number

    def agreed(self):
        """The signal some rank has received, or None; all ranks call it."""
        number = torch.tensor(self.received, device=torch.cuda.current_device())
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return signal.Signals(number.item()).name if number else None


class Watchdog:
    """Ends this process when it stands at the same place for too long.

    A collective whose other side is gone may hang for ever, in the depths of a library, where no exception comes from.
    """

    def __init__(self, minutes):
        self.minutes, self.place, self.since = minutes, "start", time.monotonic()
        self.over = threading.Event()

    def at(self, place):
        """Say that the process goes on, and where it is: a few words."""
        self.place, self.since = place, time.monotonic()

    def _watch(self):
        limit = 60 * self.minutes
        while not self.over.wait(min(limit / 4, 10)):
            if time.monotonic() - self.since > limit:
                print(
                    f"{Path(sys.argv[0]).name}: error: --distributed-timeout-minutes {self.minutes:g}: {whoami()} has "
                    f"hung at {self.place}; another rank hangs or is gone: look at its messages, then start the same "
                    "command again to go on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread cannot be woken

    def __enter__(self):
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.over.set()


def whoami():
    rank, world_size, _ = ranks()
    return f"rank {rank} of {world_size} on {os.uname().nodename}"


_LOST = re.compile(r"gloo|nccl|timed? ?out|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


def is_lost_peer(error):
    """Whether a RuntimeError says that another rank did not take part in a collective."""
    return isinstance(error, RuntimeError) and bool(_LOST.search(str(error)))


@contextlib.contextmanager
def naming_lost_peers(watchdog):
    """Turn a failed collective into one line: which rank saw it, and where."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        if not is_lost_peer(error):
            raise
        raise InputError(
            f"{whoami()} lost another at {watchdog.place} ({reason}): that one ended, hangs or was killed: look at its "
            "messages, then start the same command again to go on from the last checkpoint"
        ) from None


def shutdown():
    """Leave the process group, so that no rank waits for another at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def joined(args):
    """In the process group for a `with` block: yields a Watchdog, to which progress is told, and StopSignals."""
    stop = StopSignals()
    with Watchdog(args.distributed_timeout_minutes) as watchdog, naming_lost_peers(watchdog):
        initialize(args)
        yield watchdog, stop
        shutdown()
