#!/usr/bin/env bash
# Continual pre-training on a cluster for as long as it takes: when the job's time is almost up, or when it is
# preempted, it saves a checkpoint, goes back into the queue, and goes on from there when it runs again.
#
#     sbatch slurm/pretrain.sh                   LLaMAX2 7B, 3 nodes of 8 GPUs (from the repository, its .venv there)
#     sbatch --nodes=16 --time=48:00:00 slurm/pretrain.sh emma500-llama3-8b-bi --lr 1e-5
#     DRY_RUN=24 slurm/pretrain.sh llamax2-7b    memory and time on 24 GPUs; starts nothing, needs no Slurm
#
# The first argument is a preset, slurm/presets/NAME.sh, or a path: copy one and change it. All others are options of
# pretrain_llamax.py. What a preset writes as ${NAME:-…} can be set in the environment instead, TRAIN_ITERS=1000 say.
# One task a GPU, their number comes from Slurm. To stop for good: scancel.
#SBATCH --job-name=llamax-pretrain
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
SCRIPT=pretrain.sh
# shellcheck source=slurm/train.bash
source slurm/train.bash

PRESET=$(preset_file slurm/presets "${1:-llamax2-7b}")
[[ -n ${DRY_RUN:-${SLURM_JOB_ID:-}} ]] || fail "start it with sbatch, or with DRY_RUN=24 to see what 24 GPUs would do"

PYTHON=${PYTHON:-.venv/bin/python}
SAVE=${SAVE:-runs/$(basename "$PRESET" .sh)} # checkpoints, metrics, and how often it failed in a row
DATA=${DATA:-data}                           # folder of the preset's datasets
MAX_FAILURES=${MAX_FAILURES:-3}              # so often in a row, with no newer checkpoint in between, and it gives up
# shellcheck source=slurm/presets/llamax2-7b.sh
source "$PRESET"

# The global batch is the same on any number of GPUs: the largest micro-batch that divides a GPU's share, up to the
# preset's.
TP=${TP:-1} PP=${PP:-1} CP=${CP:-1} # tensor, pipeline and context parallel
share=$((GLOBAL_BATCH_SIZE * TP * PP * CP / ${DRY_RUN:-$SLURM_NTASKS}))
while ((share % MICRO_BATCH_SIZE)); do
    MICRO_BATCH_SIZE=$((MICRO_BATCH_SIZE - 1))
done

COMMAND=(
    "$PYTHON" pretrain_llamax.py --hf-model "$HF_MODEL" --data-path "${DATA_PATH[@]}"
    --tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP" --context-parallel-size "$CP"
    --seq-length "$SEQ_LENGTH" --micro-batch-size "$MICRO_BATCH_SIZE" --global-batch-size "$GLOBAL_BATCH_SIZE"
    --train-iters "$TRAIN_ITERS" "${OPTIMIZER[@]}" "${RUN[@]}" --save "$SAVE" --load "$SAVE" "${@:2}"
)
[[ -z ${DRY_RUN:-} ]] || exec "${COMMAND[@]}" --dry-run "$DRY_RUN"
train "${COMMAND[@]}"
