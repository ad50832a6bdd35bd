# shellcheck shell=bash disable=SC2034 # read by slurm/sft.sh
# LLaMAX2-7B-Alpaca: LLaMAX2 7B tuned on Stanford Alpaca's 52,002 English examples. "Given" is what Stanford's README has
# for LLaMA 7B (github.com/tatsu-lab/stanford_alpaca); LLaMAX (arXiv 2407.05975) gives the data and the prompt, and that
# all weights are tuned is our reading.
HF_MODEL=${HF_MODEL:-models/LLaMAX2-7B}       # given: the pre-trained model, as convert_hf.py to-hf exports it
DATA_FILES=("${DATA:-data}/alpaca_data.json") # given
PROMPT=${PROMPT:-llamax}                      # given by LLaMAX's inference code; Stanford's own: stanford

TP=${TP:-2}                                 # not given; Stanford's is fully sharded data parallelism
SEQ_LENGTH=${SEQ_LENGTH:-512}               # given
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-4}     # rows at once, at most; decides memory and speed, not the result
GLOBAL_BATCH_SIZE=${GLOBAL_BATCH_SIZE:-128} # given; examples a step
NUM_TRAIN_EPOCHS=${NUM_TRAIN_EPOCHS:-3}     # given; about 1,200 steps
OPTIMIZER=(
    --lr 2e-5                 # given
    --lr-decay-style cosine   # given
    --lr-warmup-fraction 0.03 # given
    --weight-decay 0          # given
    --adam-beta2 0.999        # not given: the default of Hugging Face's trainer
)

RUN=(
    --bf16           # given
    --over-long cut  # given: Stanford's tokenizer cuts
    --packing inside # not given, nor is any of the following
    --use-distributed-optimizer
    --sequence-parallel
    --overlap-grad-reduce
    --overlap-param-gather
    --eval-interval 100
    --save-interval 200
    --save-total-limit 2
    --async-save
)
