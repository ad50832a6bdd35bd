#!/usr/bin/env bash
# slurm/sft.sh on a real Slurm of two nodes (cluster.sh), a rank on each, on CPUs: a run whose time is up is requeued,
# goes on from its checkpoint, and ends with the losses of the run that nobody disturbed, to the last digit. All else
# it shares with slurm/pretrain.sh: see test_pretrain.sh.
#
#     tests/slurm/test_sft.sh        as root; under a minute on two cores
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-.venv/bin/python} # as in slurm/sft.sh
# shellcheck source=tests/slurm/checks.sh
source tests/slurm/checks.sh

# A tokenizer, examples and the config.json of a small Llama.
make_inputs() {
    "$PYTHON" - "$WORK" << 'END'
import json, pathlib, sys

import sentencepiece

work = pathlib.Path(sys.argv[1])
examples = [{"instruction": f"Say {i}.", "input": "now " * (i % 7), "output": f"the {i}"} for i in range(160)]
(work / "examples.json").write_text(json.dumps(examples))
(work / "llama").mkdir()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(f"{e['instruction']} {e['output']}" for e in examples), model_type="bpe", vocab_size=280,
    model_prefix=str(work / "llama" / "tokenizer"), byte_fallback=True, normalization_rule_name="identity",
    remove_extra_whitespaces=False, hard_vocab_limit=False, num_threads=1, minloglevel=2,
)
(work / "llama" / "config.json").write_text(json.dumps({
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "vocab_size": 280, "tie_word_embeddings": False, "initializer_range": 0.08,
}))
END
}

submit() { # NAME: the job's number; it saves to $WORK/NAME
    SAVE=$WORK/$1 sbatch --parsable --nodes=2 --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1 \
        --output="$LOGS/$1.log" slurm/sft.sh tiny --init-weights
}

says() { # RUN PATTERN, in its log
    grep --quiet --extended-regexp -- "$2" "$LOGS/$1.log"
}

"$CLUSTER" start "$WORK/slurm"
[[ -x $PYTHON ]] || make .venv/installed
make_inputs
export HF_MODEL=$WORK/llama DATA_FILES=$WORK/examples.json MICRO_BATCH_SIZE=1 SAVE_INTERVAL=3

stopped=$(submit stopped)
within 120 "a run is in the middle" signal_first_rank stopped "$stopped" 5 STOP
scancel --signal=USR1 "$stopped" # to the ranks, as Slurm does when time is up
sleep 1
signal_first_rank stopped "$stopped" 5 CONT
within 60 "it saves and is requeued" is "$stopped" PENDING
check "Slurm's signal told it to" says stopped "^SIGUSR1 at step [0-9]+: $WORK/stopped/iter_"
check "what is left to do was the training script's reckoning" says stopped "^sft.sh: stopped at step [0-9]+ of [0-9]+; "
check "this counts as no failure" test ! -e "$WORK/stopped/failures.txt"
plain=$(submit plain)
within 120 "the run that nobody disturbed is complete" is "$plain" COMPLETED
within 120 "the other, too" is "$stopped" COMPLETED
check "it went on from its checkpoint" says stopped "^resumed from $WORK/stopped/iter_"
check "it says that it is done" says stopped "^sft.sh: all [0-9]+ steps are done: $WORK/stopped"
check "its losses are those of the run that nobody disturbed, each step once" same_losses stopped
echo "slurm/sft.sh: all as it should be, $SECONDS s"
