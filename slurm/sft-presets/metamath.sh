# shellcheck shell=bash disable=SC2034 # read by slurm/sft.sh
# LLaMAX2-7B-MetaMath: LLaMAX2 7B "fully fine-tuned on the MetaMathQA dataset" (its model card). "Given" is what
# MetaMath's training code has for Llama-2 7B (arXiv 2309.12284, github.com/meta-math/MetaMath: run.sh, train_math.py);
# LLaMAX gives no settings. The data, 395,000 questions with their solutions:
#     python tasks.py metamath --input MetaMathQA-395K.json --output data/metamath.json
HF_MODEL=${HF_MODEL:-models/LLaMAX2-7B}    # given by the card
DATA_FILES=("${DATA:-data}/metamath.json") # given by the card
PROMPT=${PROMPT:-stanford}                 # given: two newlines between the parts, here and in LLaMAX's evaluation

TP=${TP:-2}                                 # not given; MetaMath's is fully sharded data parallelism
SEQ_LENGTH=${SEQ_LENGTH:-512}               # given
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-4}     # rows at once; decides memory and speed, not the result
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-128} # given: 8 devices, 4 examples each, 4 times accumulated
NUM_TRAIN_EPOCHS=${NUM_TRAIN_EPOCHS:-3}     # given; 9,200 steps
OPTIMIZER=(
    --lr 2e-5                 # given
    --lr-decay-style cosine   # given
    --lr-warmup-fraction 0.03 # given
)

RUN=(
    --bf16           # given
    --over-long cut  # given
    --packing inside # not given, nor is any of the following
    --use-distributed-optimizer
    --sequence-parallel
    --overlap-grad-reduce
    --overlap-param-gather
    --eval-interval 500
    --save-interval 500
    --save-total-limit 2
    --async-save
)
