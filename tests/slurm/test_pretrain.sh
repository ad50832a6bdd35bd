#!/usr/bin/env bash
# slurm/pretrain.sh on a real Slurm of two nodes (cluster.sh), four ranks on CPUs: a run that is preempted, and one of
# which a rank is killed and then time is up, are requeued, go on from their checkpoints, and end with the losses of the
# run that nobody disturbed, to the last digit. A run that always fails is given up, one that its user cancels stays so.
#
#     tests/slurm/test_pretrain.sh        as root; about three minutes on two cores
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-.venv/bin/python} # as in slurm/pretrain.sh
# shellcheck source=tests/slurm/checks.sh
source tests/slurm/checks.sh

# A tokenizer, two texts and the config.json of a small Llama.
make_inputs() {
    "$PYTHON" - "$WORK" << 'END'
import json, pathlib, random, sys

import sentencepiece

work, pick = pathlib.Path(sys.argv[1]), random.Random(0)
words = {
    "en": "the old farmer buys a red lamp in the market today and sells it to her brother tomorrow".split(),
    "fr": "le vieux fermier achète une lampe rouge au marché et la vend à son frère demain matin".split(),
}
sentences = {lang: [f"{' '.join(pick.choices(words[lang], k=12))} {i}." for i in range(1000)] for lang in words}
for lang in words:
    (work / f"{lang}.txt").write_text("".join(f"{sentence}\n" for sentence in sentences[lang]), encoding="utf-8")
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sum(sentences.values(), [])), model_prefix=str(work / "tokenizer"), vocab_size=500,
    model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
    split_digits=True, allow_whitespace_only_pieces=True, hard_vocab_limit=False, num_threads=1, minloglevel=2,
)
(work / "llama").mkdir()
(work / "llama" / "config.json").write_text(json.dumps({
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "vocab_size": 500, "tie_word_embeddings": False, "initializer_range": 0.08,
}))
END
    for lang in en fr; do
        "$PYTHON" preprocess_mono.py --input "$WORK/$lang.txt" --lang $lang --tokenizer-model "$WORK/tokenizer.model" \
            --output-prefix "$WORK/data/$lang" > "$LOGS/preprocess.log" 2>&1 || fail "preprocessing"
    done
}

# submit NAME [OPTION OF SBATCH…]: the job's number; it saves to $WORK/NAME.
submit() {
    SAVE=$WORK/$1 sbatch --parsable --nodes=2 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 \
        --output="$LOGS/$1.log" "${@:2}" slurm/pretrain.sh tiny --init-weights
}

runs_a_step() { # JOB
    [[ -n $(squeue --noheader --steps="$1.0" 2> /dev/null) ]]
}

field() { # JOB NAME: NAME=… in what scontrol says of it
    scontrol show job "$1" | grep --only-matching --perl-regexp "\b$2=\K\S+"
}

stopped_by() { # RUN SIGNAL: its log says so, and its newest checkpoint is that of the step that the log names
    local step
    step=$(cat "$WORK/$1/latest_checkpointed_iteration.txt") &&
        ((step >= 5 && step < TRAIN_ITERS)) && says "$1" "$2 at step $step: $WORK/$1/iter_"
}

says() { # RUN TEXT, in its log
    grep --quiet --fixed-strings -- "$2" "$LOGS/$1.log"
}

"$CLUSTER" start "$WORK/slurm"
[[ -x $PYTHON ]] || make .venv/installed
make_inputs
export HF_MODEL=$WORK/llama DATA_PATH="2 $WORK/data/en 1 $WORK/data/fr" TP=2 PP=2 TRAIN_ITERS=30 SAVE_INTERVAL=4

# A job in the other partition wants both nodes.

preempted=$(submit preempted)
within 240 "a run is in the middle" signal_first_rank preempted "$preempted" 5 STOP
urgent=$(sbatch --parsable --partition=urgent --nodes=2 --exclusive --output="$LOGS/urgent.log" --wrap='sleep 3')
within 120 "the urgent job runs" is "$urgent" RUNNING
check "the other has saved its last step before" stopped_by preempted SIGTERM
check "and is in the queue" is "$preempted" PENDING
check "its preemption counts as no failure" test ! -e "$WORK/preempted/failures.txt"
within 120 "the urgent job ends" is "$urgent" COMPLETED

# Others, while that waits for its turn.

plain=$(submit plain)
late=$(submit late --time=60 --signal=USR1@60)
within 240 "a rank of another run is killed in the middle" signal_first_rank late "$late" 5 KILL
within 120 "the run is requeued" is "$late" PENDING
check "which counts as a failure" says late "failed with status 137 after step "
within 240 "it goes on" signal_first_rank late "$late" 15 STOP
scontrol update JobId="$late" EndTime=now+80 # Slurm looks every 30 s whether 60 s, and 30 more, are left
within 120 "warned of its time limit, it saves and is requeued" is "$late" PENDING
check "of which Slurm's signal told it" stopped_by late SIGUSR1
check "this counts as no failure" test "$(wc -l < "$WORK/late/failures.txt")" = 1
scontrol update JobId="$late" TimeLimit=60 # EndTime has changed it

cancelled=$(submit cancelled)
hopeless=$(DATA_PATH=$WORK/data/none MAX_FAILURES=2 submit hopeless)
within 120 "a job runs that its user cancels" runs_a_step "$cancelled"
scancel "$cancelled"

within 240 "the run that nobody disturbed is complete" is "$plain" COMPLETED
within 240 "the preempted one, too" is "$preempted" COMPLETED
check "it was started twice" test "$(field "$preempted" Restarts)" = 1
check "it went on from its checkpoint" says preempted "resumed from $WORK/preempted/iter_"
check "its losses are those of the run that nobody disturbed, each step once" same_losses preempted "$TRAIN_ITERS"
within 240 "the other is complete" is "$late" COMPLETED
check "it was started three times" test "$(field "$late" Restarts)" = 2
check "it went on from its checkpoints" test "$(grep --count "^resumed from $WORK/late/iter_" "$LOGS/late.log")" = 2
check "its losses are those of the run that nobody disturbed, each step once" same_losses late "$TRAIN_ITERS"

within 240 "the run that always fails is given up" is "$hopeless" FAILED
check "after as many failures as it may have" test "$(field "$hopeless" Restarts)" = 1
check "with the status of the last" test "$(field "$hopeless" ExitCode)" = 1:0
check "it says why" says hopeless "pretrain_llamax.py: error: --data-path $WORK/data/none: "
check "how often and where" says hopeless "pretrain.sh: error: failed 2 times in a row after step 0, now with status 1;"
check "and what to do" says hopeless "mend what is said above, remove $WORK/hopeless/failures.txt and submit it again"
check "the cancelled job was not requeued" is "$cancelled" CANCELLED
check "nor was it counted as a failure" test ! -e "$WORK/cancelled/failures.txt"
echo "slurm/pretrain.sh: all as it should be, $SECONDS s"
