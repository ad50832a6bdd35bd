# shellcheck shell=bash
# LLaMAX3 8B: Llama-3 8B, otherwise as LLaMAX2; the paper gives no settings of its own for it. Data must have been
# tokenized with Llama-3's tokenizer.
HF_MODEL=${HF_MODEL:-models/Meta-Llama-3-8B}
source slurm/presets/llamax2-7b.sh
