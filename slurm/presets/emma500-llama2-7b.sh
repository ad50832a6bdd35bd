# shellcheck shell=bash
# EMMA-500 Llama 2 7B (arXiv 2409.17892): monolingual text of 546 languages, code, books, instructions and more. What we
# have gives neither shares nor tokens. Here the shares are those of the Llama 3 mix without bilingual data, and the
# tokens as many as see the MaLA monolingual corpus ("over 74 billion tokens", README) once: 74 billion / 0.389.
HF_MODEL=${HF_MODEL:-models/Llama-2-7b-hf}
TOKENS=${TOKENS:-190000000000}
source slurm/presets/emma500-llama3-8b-mono.sh
