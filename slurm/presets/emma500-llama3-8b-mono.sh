# shellcheck shell=bash disable=SC2034 # read by slurm/pretrain.sh
# EMMA-500 Llama 3 8B Mono (arXiv 2506.00469): 419 billion tokens of the mix without bilingual data; tokens and shares
# are given on mala-lm.github.io/emma-500-gen2.html. All else is as in the preset with bilingual data.
TOKENS=${TOKENS:-419000000000}
source slurm/presets/emma500-llama3-8b-bi.sh

DATA_PATH=(
    38.9 "$DATA/mono"
    22.1 "$DATA/code"
    19.5 "$DATA/papers"
    16.8 "$DATA/instructions"
    2.6 "$DATA/books"
)
