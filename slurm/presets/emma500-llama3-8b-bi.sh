# shellcheck shell=bash disable=SC2034 # read by slurm/pretrain.sh
# EMMA-500 Llama 3 8B Bi (arXiv 2506.00469): 671 billion tokens of the mix with bilingual data. "Given" is what its
# README and its page mala-lm.github.io/emma-500-gen2.html say; what they do not give is our choice. Nor do they give
# how often each language is drawn: mix.py has ways to decide it, with a dataset a language.
HF_MODEL=${HF_MODEL:-models/Meta-Llama-3-8B} # config.json, safetensors, tokenizer.model

DATA_PATH=( # given: each kind's share of the tokens, in percent
    32.3 "$DATA/bilingual"
    26.3 "$DATA/mono"
    15.0 "$DATA/code"
    13.2 "$DATA/papers"
    11.4 "$DATA/instructions"
    1.8 "$DATA/books"
)
TOKENS=${TOKENS:-671000000000} # given

TP=${TP:-2}                                  # not given, nor is anything of parallelism
SEQ_LENGTH=${SEQ_LENGTH:-4096}               # not given
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-2}      # rows at once; decides memory and speed, not the result
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-1536} # not given; 6.3 million tokens a step
TRAIN_ITERS=${TRAIN_ITERS:-$((TOKENS / (GLOBAL_BATCH_SIZE * SEQ_LENGTH)))}
OPTIMIZER=(
    --lr 2e-5                 # not given, as LLaMAX
    --lr-decay-style cosine   # not given
    --lr-warmup-fraction 0.01 # not given
)

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
