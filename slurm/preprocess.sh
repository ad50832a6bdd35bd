#!/usr/bin/env bash
# Preprocessing on a cluster: a job array makes the shards of a dataset, a job after it joins them.
#
#     job=$(sbatch --parsable --array=0-99 slurm/preprocess.sh)        (from the repository, its .venv installed)
#     sbatch --dependency=afterok:$job --kill-on-invalid-dep=yes --output=%x-%j.log slurm/preprocess.sh merge
#
# Every shard is independent of the others and of when it runs. Where a task failed or was killed, submit the array
# again: shards that are complete say so and end. Change the arrays; everything is an option of preprocess_mono.py or
# preprocess_parallel.py.
#SBATCH --job-name=llamax-preprocess
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=1G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

SHARDS=${SHARDS:-100} # array tasks 0 to SHARDS - 1
OUTPUT_PREFIX=${OUTPUT_PREFIX:-data/mono}

STAGE=(
    "${STAGE:-preprocess_mono.py}"
    --input ${INPUT:-corpus/*.jsonl.zst} # not quoted: a pattern
    --tokenizer-model "${TOKENIZER_MODEL:-models/Llama-2-7b-hf}"
)
CLEANING=(
    --dedup
    --decontaminate ${DECONTAMINATE:-flores101/dev flores101/devtest}
)

if [[ "${1:-}" == merge ]]; then
    # Five digits, not *: that would also find the shards of data/mono-fr.
    exec .venv/bin/python merge_datasets.py --output-prefix "$OUTPUT_PREFIX" \
        --input "$OUTPUT_PREFIX"-[0-9][0-9][0-9][0-9][0-9]-of-"$(printf %05d "$SHARDS")".json
fi
exec .venv/bin/python "${STAGE[@]}" "${CLEANING[@]}" --output-prefix "$OUTPUT_PREFIX" --shard "slurm/$SHARDS" \
    --workers "${SLURM_CPUS_PER_TASK:-1}"
