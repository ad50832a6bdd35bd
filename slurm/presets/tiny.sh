# shellcheck shell=bash disable=SC2034 # read by slurm/pretrain.sh
# A model of any size on CPUs, for a laptop or a test cluster: everything from the environment.
HF_MODEL=${HF_MODEL:?set HF_MODEL: a Hugging Face folder}
read -r -a DATA_PATH <<< "${DATA_PATH:?set DATA_PATH: prefixes of datasets, with a weight before each or none}"

SEQ_LENGTH=${SEQ_LENGTH:-64}
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-2}
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-8}
TRAIN_ITERS=${TRAIN_ITERS:-20}
OPTIMIZER=(--lr "${LR:-1e-3}")
RUN=(
    --packing inside
    --save-interval "${SAVE_INTERVAL:-0}"
    --log-interval 1
    --eval-interval "${EVAL_INTERVAL:-0}"
    --use-distributed-optimizer
)
