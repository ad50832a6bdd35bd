#!/usr/bin/env bash
# Evaluation on a cluster: a job array translates, each task its share of the directions, a process a GPU; a job after
# it scores and reports.
#
#     job=$(sbatch --parsable --array=0-7 slurm/evaluate.sh)        (from the repository, its .venv installed)
#     sbatch --dependency=afterok:$job --kill-on-invalid-dep=yes --ntasks-per-node=1 --gpus-per-node=0 \
#         --output=%x-%j.log slurm/evaluate.sh score
#
# A task whose time is up, or that is preempted, goes back into the queue and goes on with the next sentence. Where one
# failed, submit the array again: what is done is not done again. The translations do not depend on the number of tasks
# and GPUs. All that follows `slurm/evaluate.sh`, or `score`, are options of evaluate.py generate, or score.
#SBATCH --job-name=llamax-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

PYTHON=${PYTHON:-.venv/bin/python}
SHARDS=${SHARDS:-${SLURM_ARRAY_TASK_COUNT:-1}} # array tasks 0 to SHARDS - 1; set it to submit only some of them
OUTPUT=${OUTPUT:-evaluation}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

if [[ "${1:-}" == score ]]; then
    "$PYTHON" evaluate.py score --output "$OUTPUT" --workers "$OMP_NUM_THREADS" "${@:2}"
    exec "$PYTHON" evaluate.py report --output "$OUTPUT"
fi

COMMAND=(
    "$PYTHON" evaluate.py generate
    --hf-model "${HF_MODEL:-models/LLaMAX2-7B-Alpaca}"
    --flores "${FLORES:-flores101}"
    --directions "${DIRECTIONS:-all}"
    --output "$OUTPUT"
    --shard "slurm/$SHARDS"
)
# To this script alone. The number of an array's last task is that of the array, so that it would requeue all tasks.
trap 'scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"' USR1
srun --kill-on-bad-exit=0 --cpus-per-task="$OMP_NUM_THREADS" "${COMMAND[@]}" "$@" &
wait $!
