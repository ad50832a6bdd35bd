# shellcheck shell=bash
# What slurm/pretrain.sh and slurm/sft.sh share, sourced from the repository's root: presets, and a run that is
# requeued until it is done. SCRIPT is the name of the one that sources it.

fail() {
    echo "$SCRIPT: error: $*" >&2
    exit 1
}

# The path of preset $2, a name in folder $1 or a path.
preset_file() {
    local preset=$2
    [[ $preset == */* ]] || preset=$1/$preset.sh
    [[ -f $preset ]] || fail "$preset: no such preset; there are: $(cd "$1" && echo *.sh)"
    echo "$preset"
}

saved_step() {
    cat "$SAVE/latest_checkpointed_iteration.txt" 2> /dev/null || echo 0
}

# As the training script has resolved it.
train_iters() {
    "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["arguments"]["train_iters"])' "$SAVE/run.json"
}

# train COMMAND…: on all tasks of this job; does not return. PYTHON, SAVE and MAX_FAILURES are set.
train() {
    local first before step steps state preempted failures status=0

    # The ranks meet at the first node, under the address by which Slurm's daemons on all nodes reach it: the host name
    # may be unknown to the others, or mean the loopback or another network there.
    read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [[ $(scontrol show node "$first") =~ NodeAddr=([^ ]+) ]]
    export MASTER_ADDR=${BASH_REMATCH[1]}
    # Below those that Linux gives away.
    export MASTER_PORT=$((20000 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 12000))
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

    # Slurm sends USR1 (time) and the TERM of a preemption to the ranks, which save and end. The TERM of scancel comes
    # to this script as well: with a trap, bash waits for srun, and so the ranks have the time to save that Slurm gives
    # them. One dead rank ends all, but a minute later, because often it is another one that prints why.
    trap : TERM
    before=$(saved_step)
    srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="$OMP_NUM_THREADS" "$@" || status=$?
    step=$(saved_step)

    if ((status == 0)); then
        steps=$(train_iters)
        if ((step >= steps)); then
            echo "$SCRIPT: all $steps steps are done: $SAVE"
            exit 0
        fi
    fi
    # Its state is RUNNING now, also in the time that a preempted job is given to end. Otherwise it was cancelled, has
    # run out of time, or Slurm itself has put it back into the queue.
    read -r state preempted < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format=State:20,PreemptTime:30)
    [[ $state == RUNNING ]] || exit "$status"

    # Ended with nothing new saved, and not because of others: a failure too, as it would do no more the next time.
    if [[ $preempted == N/A ]] && ((status || step == before)); then
        mkdir -p "$SAVE"
        echo "after step $step: status $status, job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date)" \
            >> "$SAVE/failures.txt"
        failures=$(grep --count "^after step $step:" "$SAVE/failures.txt")
        if ((failures >= MAX_FAILURES)); then
            echo "$SCRIPT: error: failed $failures times in a row after step $step, now with status $status;" \
                "mend what is said above, remove $SAVE/failures.txt and submit it again" >&2
            exit $((status ? status : 1))
        fi
        echo "$SCRIPT: failed with status $status after step $step, $failures of $MAX_FAILURES times; requeueing"
    else
        echo "$SCRIPT: stopped at step $step${steps:+ of $steps}; requeueing"
    fi
    # Incomplete: unless it has been cancelled, or requeued by Slurm, in the meantime. It ends this script as well.
    scontrol requeue Incomplete "$SLURM_JOB_ID"
}
