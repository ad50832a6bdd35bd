#!/usr/bin/env bash
# The whole pipeline in miniature, on two CPU processes: `make toy`, or `make toy AUGMENT=0` for the control.
# Every stage is the script a cluster runs; only the numbers are small. A stage that is done is not run again.
set -euo pipefail
cd "$(dirname "$0")/.."

AUGMENT=${AUGMENT:-1}
WORK=${WORK:-work/toy$([ "$AUGMENT" = 1 ] || echo -plain)}
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
LAUNCH=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2)
LANGUAGES=(en fr es zh ta th)
CORPUS=$WORK/corpus HF=$WORK/corpus/hf DATA=$WORK/data

# stage NAME COMMAND…: run it once; its seconds, all attempts together, go to WORK/seconds/NAME.
stage() {
    local name=$1 started=$SECONDS status=0
    shift
    mkdir -p "$WORK/seconds"
    [ -e "$WORK/seconds/$name" ] && return
    echo "── $name"
    set +e # `"$@" || …` would go on after a failure inside the function
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    echo $((SECONDS - started)) >> "$WORK/seconds/$name.attempts"
    [ $status = 0 ] || exit $status
    awk '{ s += $1 } END { print s }' "$WORK/seconds/$name.attempts" > "$WORK/seconds/$name"
}

corpus() {
    "$PYTHON" toy/make_corpus.py --output "$CORPUS"
    "$PYTHON" toy/init_weights.py --hf-model "$HF"
}

mono() {
    for lang in "${LANGUAGES[@]}"; do
        "$PYTHON" preprocess_mono.py --input "$CORPUS/mono/$lang.jsonl" --lang "$lang" --tokenizer-model "$HF" \
            --output-prefix "$DATA/mono-$lang" --block-size 64
    done
}

parallel() { # NAME: a sample of plain pairs
    "$PYTHON" preprocess_parallel.py --input "$CORPUS/$1.jsonl" --tokenizer-model "$HF" --output-prefix "$DATA/$1" \
        --block-size 64
}

augment() { # the second sample, code-switched into the target language
    "$PYTHON" augment.py lexicon --muse "$CORPUS"/dictionaries/*.txt --output "$DATA/lexicon.jsonl"
    "$PYTHON" augment.py pairs --lexicon "$DATA/lexicon.jsonl" --input "$CORPUS/pairs2.jsonl" --both-directions \
        --into target --output "$DATA/augmented.jsonl"
    "$PYTHON" preprocess_parallel.py --input "$DATA/augmented.jsonl" --tokenizer-model "$HF" --repeat 1 \
        --output-prefix "$DATA/augmented" --block-size 64
}

pretrain() { # P1 + P2' + M, or P1 + P2 + M
    local second=$DATA/pairs2 blend=()
    [ "$AUGMENT" = 1 ] && second=$DATA/augmented
    for lang in "${LANGUAGES[@]}"; do blend+=(1 "$DATA/mono-$lang"); done
    "${LAUNCH[@]}" pretrain_llamax.py --hf-model "$HF" --data-path 22 "$DATA/pairs1" 22 "$second" "${blend[@]}" \
        --save "$WORK/pretrain" --load "$WORK/pretrain" --seq-length 64 --packing inside --micro-batch-size 16 \
        --train-iters 1400 --lr 4e-3 --min-lr 3e-4 --save-interval 500 --eval-interval 500 --log-interval 100
}

tune() {
    "${LAUNCH[@]}" sft_alpaca.py --hf-model "$WORK/pretrained-hf" --data "$CORPUS/alpaca.json" --save "$WORK/sft" \
        --load "$WORK/sft" --packing none --seq-length 96 --micro-batch-size 8 --global-batch-size 16 \
        --train-iters 1000 --lr 2e-3 --save-interval 500 --eval-interval 300 --log-interval 100
}

export_hf() { # TRAINING FOLDER
    rm -rf "$2"
    "$PYTHON" convert_hf.py to-hf --load "$1" --hf-model "$HF" --save "$2"
}

evaluate() { # MODEL OUTPUT: all 30 directions on held-out sentences, beam 4
    "$PYTHON" evaluate.py generate --hf-model "$1" --flores "$CORPUS/flores" --directions all --output "$2" \
        --max-new-tokens 16
    "$PYTHON" evaluate.py score --output "$2" --flores "$CORPUS/flores" --spbleu-model "$HF/tokenizer.model"
    "$PYTHON" evaluate.py report --output "$2"
}

stage corpus corpus
stage mono mono
stage parallel parallel pairs1
if [ "$AUGMENT" = 1 ]; then stage augment augment; else stage parallel2 parallel pairs2; fi
stage pretrain pretrain
stage export export_hf "$WORK/pretrain" "$WORK/pretrained-hf"
stage sft tune
stage export-sft export_hf "$WORK/sft" "$WORK/tuned-hf"
stage evaluate-before evaluate "$HF" "$WORK/before"
stage evaluate evaluate "$WORK/tuned-hf" "$WORK/after"
"$PYTHON" toy/summary.py "$WORK"
