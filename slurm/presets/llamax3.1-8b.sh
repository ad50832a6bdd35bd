# shellcheck shell=bash
# LLaMAX3.1 8B: Llama-3.1 8B, otherwise as LLaMAX2; there is no paper on it. The tokenizer is Llama-3's.
HF_MODEL=${HF_MODEL:-models/Llama-3.1-8B}
source slurm/presets/llamax2-7b.sh
