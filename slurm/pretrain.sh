#!/usr/bin/env bash
# Continual pre-training on a cluster for as long as it takes: when the job's time is almost up, or when it is
# preempted, it saves a checkpoint, goes back into the queue, and goes on from there when it runs again.
#
#     sbatch slurm/pretrain.sh                   LLaMAX2 7B, 3 nodes of 8 GPUs (from the repository, its .venv there)
#     sbatch --nodes=16 --time=48:00:00 slurm/pretrain.sh emma500-llama3-8b-bi --lr 1e-5
#     DRY_RUN=24 slurm/pretrain.sh llamax2-7b    memory and time on 24 GPUs; starts nothing, needs no Slurm
#
# The first argument is a preset, slurm/presets/NAME.sh, or a path: copy one and change it. All others are options of
# pretrain_llamax.py. What a preset writes as ${NAME:-…} can be set in the environment instead, TRAIN_ITERS=1000 say.
# One task a GPU, their number comes from Slurm. To stop for good: scancel.
#SBATCH --job-name=llamax-pretrain
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

fail() {
    echo "pretrain.sh: error: $*" >&2
    exit 1
}

PRESET=${1:-llamax2-7b}
[[ $PRESET == */* ]] || PRESET=slurm/presets/$PRESET.sh
[[ -f $PRESET ]] || fail "$PRESET: no such preset; there are: $(cd slurm/presets && echo *.sh)"
[[ -n ${DRY_RUN:-${SLURM_JOB_ID:-}} ]] || fail "start it with sbatch, or with DRY_RUN=24 to see what 24 GPUs would do"

PYTHON=${PYTHON:-.venv/bin/python}
SAVE=${SAVE:-runs/$(basename "$PRESET" .sh)} # checkpoints, metrics, and how often it failed in a row
DATA=${DATA:-data}                           # folder of the preset's datasets
MAX_FAILURES=${MAX_FAILURES:-3}              # so often in a row, with no newer checkpoint in between, and it gives up
# shellcheck source=slurm/presets/llamax2-7b.sh
source "$PRESET"

# The global batch is the same on any number of GPUs: the largest micro-batch that divides a GPU's share, up to the
# preset's.
TP=${TP:-1} PP=${PP:-1} CP=${CP:-1} # tensor, pipeline and context parallel
share=$((GLOBAL_BATCH_SIZE * TP * PP * CP / ${DRY_RUN:-$SLURM_NTASKS}))
while ((share % MICRO_BATCH_SIZE)); do
    MICRO_BATCH_SIZE=$((MICRO_BATCH_SIZE - 1))
done

COMMAND=(
    "$PYTHON" pretrain_llamax.py --hf-model "$HF_MODEL" --data-path "${DATA_PATH[@]}"
    --tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP" --context-parallel-size "$CP"
    --seq-length "$SEQ_LENGTH" --micro-batch-size "$MICRO_BATCH_SIZE" --global-batch-size "$GLOBAL_BATCH_SIZE"
    --train-iters "$TRAIN_ITERS" "${OPTIMIZER[@]}" "${RUN[@]}" --save "$SAVE" --load "$SAVE" "${@:2}"
)
[[ -z ${DRY_RUN:-} ]] || exec "${COMMAND[@]}" --dry-run "$DRY_RUN"

# The ranks meet at the first node, under the address by which Slurm's daemons on all nodes reach it: the host name may
# be unknown to the others, or mean the loopback or another network there.
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[[ $(scontrol show node "$first") =~ NodeAddr=([^ ]+) ]]
export MASTER_ADDR=${BASH_REMATCH[1]}
export MASTER_PORT=$((20000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 12000)) # below those that Linux gives away
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

saved_step() {
    cat "$SAVE/latest_checkpointed_iteration.txt" 2> /dev/null || echo 0
}

# Slurm sends USR1 (time) and the TERM of a preemption to the ranks, which save and end. The TERM of scancel comes to
# this script as well: with a trap, bash waits for srun, and so the ranks have the time to save that Slurm gives them.
# One dead rank ends all, but a minute later, because often it is another one that prints why.
trap : TERM
before=$(saved_step)
status=0
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="$OMP_NUM_THREADS" "${COMMAND[@]}" || status=$?
step=$(saved_step)

if ((step >= TRAIN_ITERS)); then
    echo "pretrain.sh: all $TRAIN_ITERS steps are done: $SAVE"
    exit 0
fi
# Its state is RUNNING now, also in the time that a preempted job is given to end. Otherwise it was cancelled, has run
# out of time, or Slurm itself has put it back into the queue.
read -r state preempted < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State:20,PreemptTime:30)
[[ $state == RUNNING ]] || exit "$status"

# Ended with nothing new saved, and not because of others: a failure too, as it would do no more the next time.
if [[ $preempted == N/A ]] && ((status || step == before)); then
    mkdir -p "$SAVE"
    echo "after step $step: status $status, job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date)" >> "$SAVE/failures.txt"
    failures=$(grep --count "^after step $step:" "$SAVE/failures.txt")
    if ((failures >= MAX_FAILURES)); then
        echo "pretrain.sh: error: failed $failures times in a row after step $step, now with status $status;" \
            "mend what is said above, remove $SAVE/failures.txt and submit it again" >&2
        exit $((status ? status : 1))
    fi
    echo "pretrain.sh: failed with status $status after step $step, $failures of $MAX_FAILURES times; requeueing"
else
    echo "pretrain.sh: stopped at step $step of $TRAIN_ITERS; requeueing"
fi
# Incomplete: unless it has been cancelled, or requeued by Slurm, in the meantime. It ends this script as well.
scontrol requeue Incomplete "$SLURM_JOB_ID"
