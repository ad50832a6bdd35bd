#!/usr/bin/env bash
# Instruction tuning on a cluster; like slurm/pretrain.sh, it goes back into the queue until all is done.
#
#     HF_MODEL=work/hf sbatch slurm/sft.sh            Alpaca, a node of 8 GPUs (from the repository, its .venv there)
#     sbatch --nodes=2 slurm/sft.sh alpaca --prompt stanford
#     DRY_RUN=1 slurm/sft.sh alpaca                   the command line; starts nothing, needs no Slurm
#
# The first argument is a preset, slurm/sft-presets/NAME.sh, or a path: copy one and change it. All others are options
# of sft_alpaca.py. What a preset writes as ${NAME:-…} can be set in the environment instead. To stop for good: scancel.
#SBATCH --job-name=llamax-sft
#SBATCH --nodes=1
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
SCRIPT=sft.sh
# shellcheck source=slurm/train.bash
source slurm/train.bash

PRESET=$(preset_file slurm/sft-presets "${1:-alpaca}")
[[ -n ${DRY_RUN:-${SLURM_JOB_ID:-}} ]] || fail "start it with sbatch, or with DRY_RUN=1 to see its command line"

PYTHON=${PYTHON:-.venv/bin/python}
SAVE=${SAVE:-runs/sft-$(basename "$PRESET" .sh)} # checkpoints, metrics, and how often it failed in a row
MAX_FAILURES=${MAX_FAILURES:-3}                  # so often in a row, with no newer checkpoint in between: it gives up
# shellcheck source=slurm/sft-presets/alpaca.sh
source "$PRESET"

COMMAND=(
    "$PYTHON" sft_alpaca.py --hf-model "$HF_MODEL" --data "${DATA_FILES[@]}" --prompt "$PROMPT"
    --tensor-model-parallel-size "$TP" --seq-length "$SEQ_LENGTH" --micro-batch-size "$MICRO_BATCH_SIZE"
    --global-batch-size "$GLOBAL_BATCH_SIZE" --num-train-epochs "$NUM_TRAIN_EPOCHS"
    "${OPTIMIZER[@]}" "${RUN[@]}" --save "$SAVE" --load "$SAVE" "${@:2}"
)
if [[ -n ${DRY_RUN:-} ]]; then
    echo "${COMMAND[@]@Q}"
    exit
fi
train "${COMMAND[@]}"
