#!/usr/bin/env bash
# slurm/evaluate.sh on a real Slurm of two nodes (cluster.sh), on CPUs: two array tasks translate each their share, every
# sentence once; a task is killed, another one's time is up, and the files are those of one undisturbed process.
#
#     tests/slurm/test_evaluate.sh        as root; under a minute on two cores
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-.venv/bin/python} # as in slurm/evaluate.sh
# shellcheck source=tests/slurm/checks.sh
source tests/slurm/checks.sh
SENTENCES=8000

# A random Llama with its tokenizer, and 400 lines in five languages: 20 directions.
make_inputs() {
    "$PYTHON" - "$WORK" << 'END'
import pathlib, random, sys

import sentencepiece, torch, transformers

work, pick = pathlib.Path(sys.argv[1]), random.Random(0)
words = "the old farmer buys a red lamp in the market today and sells it to her brother tomorrow".split()
(work / "flores" / "devtest").mkdir(parents=True)
for language in ("eng", "fra", "deu", "spa", "ita"):
    lines = [" ".join(pick.choices(words, k=pick.randint(3, 12))) for _ in range(400)]
    (work / "flores" / "devtest" / f"{language}.devtest").write_text("".join(f"{line}\n" for line in lines))
(work / "llama").mkdir()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_type="bpe", vocab_size=320, model_prefix=str(work / "llama" / "tokenizer"),
    byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
    num_threads=1, minloglevel=2,
)
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    initializer_range=0.5,
)
transformers.LlamaForCausalLM(config).save_pretrained(work / "llama")
END
}

OPTIONS=(--num-beams 2 --max-new-tokens 8 --device cpu --max-batch-tokens 8192)

submit() { # NAME [OPTION OF SBATCH…]: the array's number; it writes to $WORK/NAME
    OUTPUT=$WORK/$1 sbatch --parsable --array=0-1 --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1 \
        --output="$LOGS/$1-%a.log" "${@:2}" slurm/evaluate.sh "${OPTIONS[@]}"
}

task_state() { # ARRAY TASK
    squeue --noheader --array --states=all --jobs="$1_$2" --format=%T
}

task_is() { # ARRAY TASK STATE
    [[ $(task_state "$1" "$2") == "$3" ]]
}

both_are() { # ARRAY STATE
    task_is "$1" 0 "$2" && task_is "$1" 1 "$2"
}

is_begun() { # OUTPUT: a direction is partly translated
    compgen -G "$WORK/$1/hypotheses/*.partial.jsonl" > /dev/null
}

same_files() { # OUTPUT
    diff --recursive "$WORK/plain/hypotheses" "$WORK/$1/hypotheses"
}

sentences_of_both() { # OUTPUT: how many its tasks say they translated
    grep --only-matching --perl-regexp --no-filename '[\d,]+(?= sentences in this run)' "$LOGS/$1"-[01].log |
        tr --delete , | awk '{ sum += $1 } END { print sum }'
}

process_of() { # ARRAY TASK: the number of its evaluate.py
    local job
    job=$(squeue --noheader --array --jobs="$1_$2" --format=%A)
    scontrol listpids "$job.0" "$(squeue --noheader --jobs="$1_$2" --format=%N)" 2> /dev/null |
        awk '$5 == 0 { print $1; exit }'
}

"$CLUSTER" start "$WORK/slurm"
[[ -x $PYTHON ]] || make .venv/installed
make_inputs > "$LOGS/inputs.log" 2>&1 || fail "making the inputs"
export HF_MODEL=$WORK/llama FLORES=$WORK/flores

shared=$(submit shared)
OMP_NUM_THREADS=1 "$PYTHON" evaluate.py generate --hf-model "$HF_MODEL" --flores "$FLORES" --directions all \
    --output "$WORK/plain" "${OPTIONS[@]}" > "$LOGS/plain.log" 2>&1 || fail "the run without Slurm"
within 60 "two array tasks complete" both_are "$shared" COMPLETED
for task in 0 1; do
    check "task $task had a share" grep --quiet "part $task of 2 of 20 directions" "$LOGS/shared-$task.log"
done
check "together they translated every sentence once" test "$(sentences_of_both shared)" = $SENTENCES
check "the files are those of one process" same_files shared

# One task is killed, the time of the other is up.
disturbed=$(submit disturbed)
within 60 "an array is in the middle" is_begun disturbed
kill -KILL "$(process_of "$disturbed" 0)"
scancel --batch --signal=USR1 "${disturbed}_1" # as Slurm does a minute before the end
within 30 "the killed task failed" task_is "$disturbed" 0 FAILED
within 60 "the other one is requeued and completes" task_is "$disturbed" 1 COMPLETED
check "it started twice" test "$(scontrol show job "${disturbed}_1" | grep --only-matching --perl-regexp '\bRestarts=\K\d+')" = 1
again=$(submit disturbed)
within 60 "submitted again, both complete" both_are "$again" COMPLETED
check "the files are those of one undisturbed process" same_files disturbed

# Scores and report, by a job of their own.
score=$(OUTPUT=$WORK/disturbed sbatch --parsable --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1 \
    --output="$LOGS/score.log" slurm/evaluate.sh score --spbleu-model "$HF_MODEL/tokenizer.model")
within 60 "the scoring job completes" is "$score" COMPLETED
check "it has written a report" test -s "$WORK/disturbed/report.html"
check "of 20 directions" test "$(grep --count '"metric": "spBLEU"' "$WORK/disturbed/scores.jsonl")" = 20
echo "slurm/evaluate.sh: all as it should be, $SECONDS s"
