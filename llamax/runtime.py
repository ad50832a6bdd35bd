"""Setting up a process of a training job: device, ranks, model-parallel groups, seeds."""

import logging
import os
import random
import sys
import warnings
from datetime import timedelta

warnings.filterwarnings("ignore", module="megatron")  # of what is deliberately not installed: import this first
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of ShardedTensor, megatron's

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel

from llamax.files import InputError, file_error


def ranks():
    """(rank, world size, local rank) as torchrun or srun tells them; (0, 1, 0) for a plain python."""
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # Set in tasks that srun starts, but not in the batch script around them, where a plain python is on its own.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def initialize(args):
    """Join the process group (NCCL on GPUs, gloo on CPUs) and build the model-parallel groups.

    Needs args.tensor_model_parallel_size, pipeline_model_parallel_size, seed, distributed_timeout_minutes, all
    already checked against the world size by `check_parallelism`.
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
    parallel_state.initialize_model_parallel(args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
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


def check_parallelism(args, world_size):
    """What is wrong with the parallel sizes and batch sizes, as a list of one-line problems."""
    problems = []
    model_parallel = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    if min(args.tensor_model_parallel_size, args.pipeline_model_parallel_size) < 1:
        return ["--tensor-model-parallel-size and --pipeline-model-parallel-size: expected at least 1"]
    if world_size % model_parallel:
        problems.append(
            f"--tensor-model-parallel-size {args.tensor_model_parallel_size} × --pipeline-model-parallel-size "
            f"{args.pipeline_model_parallel_size}: do not divide the {world_size} process(es) started"
        )
        return problems
    data_parallel = world_size // model_parallel
    if args.micro_batch_size < 1 or args.global_batch_size % (args.micro_batch_size * data_parallel):
        problems.append(
            f"--global-batch-size {args.global_batch_size}: expected a multiple of --micro-batch-size "
            f"{args.micro_batch_size} × {data_parallel} data-parallel rank(s)"
        )
    return problems


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


def shutdown():
    """Leave the process group, so that no rank waits for another at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
