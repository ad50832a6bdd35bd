# shellcheck shell=bash disable=SC2034 # read by slurm/sft.sh
# A model of any size on CPUs, for a laptop or a test cluster: everything from the environment.
HF_MODEL=${HF_MODEL:?set HF_MODEL: a Hugging Face folder}
read -r -a DATA_FILES <<< "${DATA_FILES:?set DATA_FILES: JSON files in the form of Alpaca}"
PROMPT=${PROMPT:-llamax}

TP=${TP:-1}
SEQ_LENGTH=${SEQ_LENGTH:-512}
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-2}
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-8}
NUM_TRAIN_EPOCHS=${NUM_TRAIN_EPOCHS:-1}
OPTIMIZER=(--lr "${LR:-1e-3}")
RUN=(
    --packing inside
    --save-interval "${SAVE_INTERVAL:-0}"
    --log-interval 1
    --eval-interval "${EVAL_INTERVAL:-0}"
    --use-distributed-optimizer
)
