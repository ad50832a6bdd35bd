#!/usr/bin/env bash
# Continual pre-training on a cluster: LLaMAX2 7B, the paper's settings (24 A100 80 GB, batch 32 a device, lr 2e-5,
# one epoch). What the paper leaves open is marked. Change the arrays; everything is an option of pretrain_llamax.py.
#
#     TRAIN_ITERS=100000 sbatch slurm/pretrain.sh           (from the repository, its .venv installed)
#     TRAIN_ITERS=100000 sbatch --nodes 6 --gpus-per-node 4 --ntasks-per-node 4 slurm/pretrain.sh
#
# One task a GPU; the number of nodes comes from Slurm. A job that is started again goes on from the last checkpoint.
#SBATCH --job-name=llamax-pretrain
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

HF_MODEL=${HF_MODEL:-models/Llama-2-7b-hf} # config.json, safetensors, tokenizer.model
DATA=${DATA:-data}                         # prefixes written by the preprocess scripts
SAVE=${SAVE:-runs/llamax2-7b}

DATA_PATH=(
    1 "$DATA/mono"
    2 "$DATA/parallel"
    1 "$DATA/augmented"
)
MODEL=(
    --hf-model "$HF_MODEL"
    --tensor-model-parallel-size 4 # not the paper's: it names no parallelism
    --bf16
)
BATCHES=(
    --seq-length 512 # the paper's block size of monolingual entries
    --packing across # not given
    --micro-batch-size 32
    --global-batch-size "${GLOBAL_BATCH_SIZE:-768}" # 24 devices with 32 each, had each its own rows
    --train-iters "${TRAIN_ITERS:?set TRAIN_ITERS: one epoch is rows of the data / global batch size}"
)
OPTIMIZER=(
    --lr 2e-5
    --lr-decay-style cosine   # not given
    --lr-warmup-fraction 0.01 # not given
)

export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

srun .venv/bin/python pretrain_llamax.py "${MODEL[@]}" --data-path "${DATA_PATH[@]}" "${BATCHES[@]}" \
    "${OPTIMIZER[@]}" --save "$SAVE" --load "$SAVE" --save-interval 500 --eval-interval 500
