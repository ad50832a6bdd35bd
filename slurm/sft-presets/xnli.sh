# shellcheck shell=bash disable=SC2034 # read by slurm/sft.sh
# LLaMAX2-7B-XNLI: LLaMAX2 7B tuned on English MultiNLI ("given": LLaMAX's README and arXiv 2407.05975). The data:
#     python tasks.py xnli --input multinli_1.0_train.jsonl --output data/xnli.json
# No setting of this tuning is given; what stands here is Stanford Alpaca's for 7B, as for LLaMAX2-7B-Alpaca.
HF_MODEL=${HF_MODEL:-models/LLaMAX2-7B} # given
DATA_FILES=("${DATA:-data}/xnli.json")  # given: English MultiNLI
PROMPT=${PROMPT:-llamax}                # not given; the prompt inside it is that of the evaluation LLaMAX points to

TP=${TP:-2}                                 # not given, nor is anything of parallelism
SEQ_LENGTH=${SEQ_LENGTH:-512}               # not given
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-4}     # rows at once; decides memory and speed, not the result
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-128} # not given; examples a step
NUM_TRAIN_EPOCHS=${NUM_TRAIN_EPOCHS:-3}     # not given; 392,702 pairs: 9,100 steps
OPTIMIZER=(
    --lr 2e-5                 # not given
    --lr-decay-style cosine   # not given
    --lr-warmup-fraction 0.03 # not given
)

RUN=(
    --bf16 # not given, nor is any of the following
    --packing inside
    --use-distributed-optimizer
    --sequence-parallel
    --overlap-grad-reduce
    --overlap-param-gather
    --eval-interval 500
    --save-interval 500
    --save-total-limit 2
    --async-save
)
