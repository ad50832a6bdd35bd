#!/usr/bin/env bash
# The pipeline on real text, small: NTREX-128 and TICO-19 with LLaMA-2's vocabulary, 200 Alpaca examples, four
# directions of Flores-101. `make real`; needs the data folder (DATA, default ../shared/data). It shows that real files
# go through and that the held-out loss falls; a model of this size and minutes of training translates nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

SHARED=${DATA:-../shared/data}
WORK=${WORK:-work/real}
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1
LAUNCH=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2)
[ -d "$SHARED" ] || { echo "benchmarks/real_text.sh: no folder $SHARED; set DATA" >&2; exit 1; }

HF=$WORK/hf
mkdir -p "$HF" "$WORK/text"
cp "$SHARED/tokenizers/llama2.tokenizer.model" "$HF/tokenizer.model"
cat > "$HF/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 128,
 "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
 "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "initializer_range": 0.05,
 "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 10000.0,
 "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "dtype": "float32"}
JSON

blend=()
for pair in eng:en fra-CA:fr spa:es por-BR:pt ind:id hin:hi swa:sw zho-TW:zhtrad; do
    "$PYTHON" preprocess_mono.py --input "$SHARED"/ntrex/NTREX-128/newstest2019-*."${pair%:*}".txt --lang "${pair#*:}" \
        --tokenizer-model "$HF" --output-prefix "$WORK/data/mono-${pair#*:}" --block-size 128
    blend+=(1 "$WORK/data/mono-${pair#*:}")
done
for pair in fr:fr es-419:es pt-BR:pt id:id hi:hi sw:sw zh:zh; do
    lang=${pair#*:} text=$WORK/text/en-${pair#*:}
    cut -f 1 "$SHARED/tico19/en-${pair%:*}.tsv" > "$text.en"
    cut -f 2 "$SHARED/tico19/en-${pair%:*}.tsv" > "$text.$lang"
    "$PYTHON" preprocess_parallel.py --src "$text.en" --tgt "$text.$lang" --src-lang en --tgt-lang "$lang" \
        --tokenizer-model "$HF" --output-prefix "$WORK/data/en-$lang" --max-reject-rate 0.02
    blend+=(2 "$WORK/data/en-$lang")
done

"${LAUNCH[@]}" pretrain_llamax.py --hf-model "$HF" --init-weights --data-path "${blend[@]}" --split 97,3,0 \
    --save "$WORK/pretrain" --load "$WORK/pretrain" --seq-length 256 --micro-batch-size 4 --train-iters 400 --lr 3e-3 \
    --eval-interval 100 --log-interval 25
[ -d "$WORK/pretrained" ] || "$PYTHON" convert_hf.py to-hf --load "$WORK/pretrain" --hf-model "$HF" --save "$WORK/pretrained"

"$PYTHON" -c 'import json, sys; json.dump(json.load(open(sys.argv[1]))[:200], open(sys.argv[2], "w"))' \
    "$SHARED/alpaca/alpagasus_random_9k.json" "$WORK/alpaca200.json"
"${LAUNCH[@]}" sft_alpaca.py --hf-model "$WORK/pretrained" --data "$WORK/alpaca200.json" --save "$WORK/sft" \
    --load "$WORK/sft" --max-reject-rate 0.05 --split 90,10,0 --global-batch-size 16 --micro-batch-size 4 --lr 1e-3 \
    --packing none --eval-interval 20 --eval-iters 1 --log-interval 10
[ -d "$WORK/tuned" ] || "$PYTHON" convert_hf.py to-hf --load "$WORK/sft" --hf-model "$HF" --save "$WORK/tuned"

"$PYTHON" evaluate.py generate --hf-model "$WORK/tuned" --flores "$SHARED/flores101" --output "$WORK/flores" \
    --directions en-fr,fr-en,en-es,es-en --limit 100 --max-new-tokens 64
"$PYTHON" evaluate.py score --output "$WORK/flores" --flores "$SHARED/flores101" \
    --spbleu-model "$SHARED/tokenizers/sacrebleu_tokenizer_spm.model"
"$PYTHON" evaluate.py report --output "$WORK/flores"
