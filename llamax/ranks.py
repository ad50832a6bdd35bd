"""Which of the processes of a job this one is. Apart from what else they share, which needs torch."""

import os


def ranks():
    """(rank, world size, local rank) as torchrun or srun tells them; (0, 1, 0) for a plain python."""
    env = os.environ
    if "RANK" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # Set in tasks that srun starts, but not in the batch script around them, where a plain python is on its own.
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0
