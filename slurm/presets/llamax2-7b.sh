# shellcheck shell=bash disable=SC2034 # read by slurm/pretrain.sh
# LLaMAX2 7B (arXiv 2407.05975, appendix C.1): Llama-2 7B, its own vocabulary, on 24 A100 80 GB for 60 days. "Given" and
# "not given" are about that paper; what is not given is our choice.
HF_MODEL=${HF_MODEL:-models/Llama-2-7b-hf} # config.json, safetensors, tokenizer.model

DATA_PATH=( # without weights: every entry once an epoch, the union of all parts (Algorithm 1)
    "$DATA/mono"
    "$DATA/parallel"
    "$DATA/augmented"
)

TP=${TP:-2}                                 # not given, nor is anything of parallelism
SEQ_LENGTH=${SEQ_LENGTH:-512}               # not given; entries of monolingual text have at most 512 tokens
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-16}    # rows at once; decides memory and speed, not the result
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-768} # given: 32 rows a device, 24 devices; accumulation is not given
OPTIMIZER=(
    --lr 2e-5                 # given
    --lr-decay-style cosine   # not given
    --lr-warmup-fraction 0.01 # not given
)

# Given: one epoch. Its tokens are not: those that the manifests of the data count, but for two in a hundred (one is
# held out, see --split; the rest is for what fills no row); as long as there is no data, DRY_RUN takes 100 billion.
if [[ -z ${TOKENS:-} && -n ${DRY_RUN:-} && ! -e $DATA/mono.json ]]; then
    TOKENS=100000000000
fi
TOKENS=${TOKENS:-$(awk -F '[:,]' '/^  "tokens":/ { sum += $2 } END { printf "%d", sum }' "${DATA_PATH[@]/%/.json}")}
TRAIN_ITERS=${TRAIN_ITERS:-$((TOKENS * 98 / 100 / (GLOBAL_BATCH_SIZE * SEQ_LENGTH)))}

RUN=(
    --bf16 # not given, nor is any of the following
    --use-distributed-optimizer
    --sequence-parallel
    --overlap-grad-reduce
    --overlap-param-gather
    --packing across
    --eval-interval 500
    --save-interval 500
    --save-total-limit 2
    --async-save
)
