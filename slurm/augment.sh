#!/usr/bin/env bash
# Code-switching on a cluster: a job array, each task a shard of the pairs.
#
#     sbatch --array=0-99 slurm/augment.sh        (from the repository, its .venv installed)
#
# A shard is independent of the others; where a task failed or was killed, submit the array again. The shards are what
# preprocess_parallel.py takes as its --input: data/switched-*-of-00100.jsonl. The lexicon is made before, once:
#
#     python augment.py lexicon --muse muse/*.txt --panlex panlex/*_lexicon.txt --output data/lexicon.jsonl
#SBATCH --job-name=llamax-augment
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=1G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

SHARDS=${SHARDS:-100} # array tasks 0 to SHARDS - 1

exec .venv/bin/python augment.py "${COMMAND:-pairs}" \
    --lexicon "${LEXICON:-data/lexicon.jsonl}" \
    --input ${INPUT:-corpus/*.jsonl.zst} `# not quoted: a pattern` \
    --output "${OUTPUT:-data/switched.jsonl}" \
    --shard "slurm/$SHARDS" \
    --workers "${SLURM_CPUS_PER_TASK:-1}"
