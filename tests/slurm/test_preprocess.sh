#!/usr/bin/env bash
# slurm/preprocess.sh on a real Slurm of two nodes (cluster.sh): one array task is killed in the middle of its shard,
# the array is submitted again, and what the merge job makes is, byte for byte, what one run without shards makes.
#
#     tests/slurm/test_preprocess.sh        as root; about 20 s on two cores
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=.venv/bin/python # as in slurm/preprocess.sh
SHARDS=8
# shellcheck source=tests/slurm/checks.sh
source tests/slurm/checks.sh
OUT=$WORK/sharded

# 64 MiB in four files: 2,000 sentences in two languages, eight of them in each document, so that no two documents are
# the same by chance; some occur again, some hold a sentence of the evaluation sets. The last piece of each file, what
# is over 16 MiB, is the end of a line: no record begins in it. And a tokenizer.
make_corpus() {
    "$PYTHON" - "$WORK" << 'END'
import json, pathlib, random, sys

import sentencepiece

work, pick = pathlib.Path(sys.argv[1]), random.Random(0)
words = {
    "en": "the old farmer buys a red lamp in the market today and sells it to her brother tomorrow".split(),
    "fr": "le vieux fermier achète une lampe rouge au marché et la vend à son frère demain matin".split(),
}
sentences = {lang: [f"{' '.join(pick.choices(words[lang], k=12))} {i}." for i in range(1000)] for lang in words}
for name, some in (("dev", slice(0, 3)), ("devtest", slice(3, 6))):
    for lang in words:
        path = work / "flores" / name / f"{lang}.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{sentence}\n" for sentence in sentences[lang][some]), encoding="utf-8")
(work / "corpus").mkdir()
lines = []
for number in range(4):
    with open(work / "corpus" / f"{number}.jsonl", "w", encoding="utf-8") as file:
        while file.tell() < 16 << 20:
            if lines and pick.random() < 0.05:
                file.write(pick.choice(lines))
                continue
            lang = pick.choice(("en", "fr"))
            first = 0 if pick.random() < 0.01 else 6
            text = " ".join(pick.choices(sentences[lang][first:], k=8))
            lines.append(json.dumps({"text": text, "lang": lang}, ensure_ascii=False) + "\n")
            file.write(lines[-1])
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sum(sentences.values(), [])), model_prefix=str(work / "tokenizer"), vocab_size=500,
    model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
    split_digits=True, allow_whitespace_only_pieces=True, hard_vocab_limit=False, num_threads=1, minloglevel=2,
)
END
}

name() { # of a shard
    printf 'mono-%05d-of-%05d' "$1" $SHARDS
}

# State and node of task $2 of array $1, also when it has ended.
task() {
    squeue --noheader --array --states=all --jobs="$1_$2" --format='%T %N'
}

ended() {
    local left
    left=$(squeue --noheader --jobs="$1") && [[ -z $left ]]
}

# Stop the first process, of shard 3 or later, that is found writing its shard: sets VICTIM and PID. Its .bin still has
# its temporary name, which tells the process: so nothing of the shard is complete, and a stopped process ends nothing.
stop_a_writer() {
    local partial
    for VICTIM in $(seq 3 $((SHARDS - 1))); do
        for partial in "$OUT/.$(name "$VICTIM").bin."*.partial; do
            PID=${partial%.partial}
            PID=${PID##*.}
            if [[ -e $partial ]] && kill -STOP "$PID" 2> /dev/null; then
                while [[ $(state "$PID") == [RSD] ]]; do :; done
                [[ ! -e $partial ]] || return 0
                kill -CONT "$PID" 2> /dev/null || true # too late
            fi
        done
    done
    return 1
}

state() { # of process $1: a letter; nothing if it is no more
    awk '/^State:/ { print $2 }' "/proc/$1/status" 2> /dev/null
}

# Nothing is left of the process group that PID leads, it and its workers, but zombies whose end nobody has asked for.
all_dead() {
    [[ -z $(cat /proc/[0-9]*/stat 2> /dev/null | awk -v group="$PID" '$5 == group && $3 != "Z"') ]]
}

for_the_others() { # COMMAND…: succeeds with the number of each shard but the victim's
    local number
    for number in $(seq 0 $((SHARDS - 1))); do
        [[ $number == "$VICTIM" ]] || "$@" "$number" || return 1
    done
}

is_complete() {
    [[ -s $OUT/$(name "$1").json && $(task "$first" "$1") == COMPLETED* ]]
}

had_nothing_to_do() {
    [[ $(< "$LOGS/llamax-preprocess-${second}_$1.log") == "$OUT/$(name "$1"): complete, nothing to do" ]]
}

on_both_nodes() {
    [[ $(squeue --noheader --array --states=all --jobs="$first" --format=%N | sort -u | xargs) == "n1 n2" ]]
}

never_runs() {
    [[ $(squeue --noheader --jobs="$1" --format=%r) == DependencyNeverSatisfied ]]
}

names_the_victim() { # STATUS MESSAGE of the merge
    [[ $1 == 1 && $2 == "merge_datasets.py: error: "*"1 of $SHARDS shards missing: $VICTIM;"* && $2 != *$'\n'* ]]
}

# Files, times of change and digests of all shards but the victim's.
others() {
    find "$OUT" -name 'mono-*-of-*' ! -name "$(name "$VICTIM").*" -printf '%p %T@\n' -exec sha256sum {} + | sort
}

made() { # that the shard of the victim was made by the second array
    grep --quiet "^$OUT/$(name "$VICTIM"): .* records, .* tokens" "$LOGS/llamax-preprocess-${second}_$VICTIM.log" &&
        [[ -s $OUT/$(name "$VICTIM").json && $(task "$second" "$VICTIM") == COMPLETED* ]]
}

# The run without shards.

"$CLUSTER" start "$WORK/slurm"
[[ -x $PYTHON ]] || make .venv/installed
make_corpus

export SHARDS INPUT="$WORK/corpus/*.jsonl" OUTPUT_PREFIX="$OUT/mono" TOKENIZER_MODEL="$WORK/tokenizer.model"
export DECONTAMINATE="$WORK/flores/dev $WORK/flores/devtest"
# shellcheck disable=SC2086 # a pattern and a list, not quoted in slurm/preprocess.sh either
"$PYTHON" preprocess_mono.py --input $INPUT --tokenizer-model "$TOKENIZER_MODEL" --dedup \
    --decontaminate $DECONTAMINATE --output-prefix "$WORK/reference/mono" --workers 2 \
    > "$LOGS/reference.log" 2>&1 || fail "the run without shards"
for reason in duplicate "in a test set"; do
    check "the run without shards dropped records: $reason" \
        grep --quiet "\"reason\": \"$reason\"" "$WORK/reference/mono.rejects.jsonl"
done

# The array, of which one task is killed, and the merge job after it, submitted as slurm/preprocess.sh says.

ARRAY=(--parsable --array=0-$((SHARDS - 1)) --output="$LOGS/%x-%A_%a.log")
MERGE=(--parsable --output="$LOGS/merge-%j.log")
first=$(sbatch "${ARRAY[@]}" slurm/preprocess.sh)
merge=$(sbatch "${MERGE[@]}" --dependency=afterok:"$first" slurm/preprocess.sh merge)

within 60 "a task of the array is in the middle of its shard" stop_a_writer
check "array task $VICTIM is running" test "$(task "$first" "$VICTIM" | cut -d ' ' -f 1)" = RUNNING
check "its shard is not complete" test ! -e "$OUT/$(name "$VICTIM").json"
kill -KILL -- "-$PID" # all at once, as when memory runs out; scancel sends SIGCONT and SIGTERM first
within 10 "its process and the workers are no more" all_dead
within 120 "the array ended" ended "$first"
check "task $VICTIM failed" test "$(task "$first" "$VICTIM" | cut -d ' ' -f 1)" = FAILED
check "its shard has no marker" test ! -e "$OUT/$(name "$VICTIM").json"
check "all other tasks completed, and their shards have markers" for_the_others is_complete
check "tasks ran on both nodes" on_both_nodes
within 30 "the merge job that depends on the array never runs" never_runs "$merge"
scancel "$merge"
echo '{}' > "$OUT/mono-fr-$(printf '00000-of-%05d' $SHARDS).json" # a shard of another dataset, mono-fr
status=0
message=$(slurm/preprocess.sh merge 2>&1) || status=$?
check "merging now fails with status 1 and one line: $message" names_the_victim $status "$message"
check "and writes nothing" test -z "$(find "$OUT" -name 'mono*' ! -name 'mono-*')"

# The same array again, and the merge job.

before=$(others)
second=$(sbatch "${ARRAY[@]}" slurm/preprocess.sh)
merge=$(sbatch "${MERGE[@]}" --dependency=afterok:"$second" slurm/preprocess.sh merge)
within 120 "the second array ended" ended "$second"
check "the tasks whose shards were complete say so and do nothing else" for_the_others had_nothing_to_do
check "their files did not change: times and sha256" test "$(others)" = "$before"
check "the missing shard was made" made
within 60 "the merge job ended" ended "$merge"
for ending in bin idx keys rejects.jsonl json; do
    check "merged: mono.$ending is byte for byte that of the run without shards" \
        cmp "$WORK/reference/mono.$ending" "$OUT/mono.$ending"
done
check "nothing temporary is left" test -z "$(find "$OUT" -name '.*')"
echo "slurm/preprocess.sh: all as it should be, $SECONDS s"
