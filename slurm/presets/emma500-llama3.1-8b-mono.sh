# shellcheck shell=bash
# EMMA-500 Llama 3.1 8B Mono: as with Llama 3, which has the same tokenizer.
HF_MODEL=${HF_MODEL:-models/Llama-3.1-8B}
source slurm/presets/emma500-llama3-8b-mono.sh
