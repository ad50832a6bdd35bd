# shellcheck shell=bash
# What the tests on a real Slurm share, sourced from the repository's root: WORK, a folder that vanishes with the test,
# LOGS in it, a cluster's SLURM_CONF, and assertions, each of which prints a line.
CLUSTER=$PWD/tests/slurm/cluster.sh
unset "${!SLURM_@}" "${!SBATCH_@}" # this may itself run in a job

WORK=$(mktemp -d)
export SLURM_CONF=$WORK/slurm/slurm.conf
LOGS=$WORK/logs
mkdir "$LOGS"

# Also after a failure or a signal: nothing is left running, nothing is left in the system.
finish() {
    local status=$?
    "$CLUSTER" stop "$WORK/slurm" || true
    rm -rf "$WORK"
    exit $status
}
trap finish EXIT

fail() {
    tail --lines=12 "$LOGS"/*.log >&2 2> /dev/null || true
    squeue --states=all >&2 || true
    echo "$(basename "$0"): FAILED: $*" >&2
    exit 1
}

# check WHAT COMMAND…
check() {
    local what=$1
    shift
    "$@" || fail "$what"
    echo "ok: $what"
}

# within SECONDS WHAT COMMAND…: the same, but it may become true in the meantime.
within() {
    local deadline=$((SECONDS + $1)) limit=$1 what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || fail "not within $limit s: $what"
        sleep 0.05
    done
    echo "ok: $what"
}

# Of jobs that train and save to $WORK/RUN.

state() { # of job $1
    squeue --noheader --states=all --jobs="$1" --format=%T
}

is() { # JOB STATE
    [[ $(state "$1") == "$2" ]]
}

# signal_first_rank RUN JOB STEP SIGNAL, when it has done so many steps. What is stopped with STOP, so that it does not
# end before Slurm's signal comes, however fast this machine is, is woken by Slurm: it sends CONT before each signal.
signal_first_rank() {
    local pid
    [[ $(grep --count '"loss"' "$WORK/$1/metrics.jsonl" 2> /dev/null) -ge $3 ]] || return 1
    pid=$(scontrol listpids "$2.0" n1 2> /dev/null | awk '$5 == 0 { print $1; exit }')
    [[ -n $pid ]] && kill -"$4" "$pid"
}

# same_losses RUN [STEPS]: those of `plain`, each step once, in order.
same_losses() {
    "$PYTHON" - "$WORK/plain/metrics.jsonl" "$WORK/$1/metrics.jsonl" "${@:2}" << 'END'
import json, sys

plain, other = (
    [(row["iteration"], row["loss"], row["grad_norm"]) for row in map(json.loads, open(name)) if "loss" in row]
    for name in sys.argv[1:3]
)
count = int(sys.argv[3]) if sys.argv[3:] else len(plain)
sys.exit([step for step, *_ in plain] != list(range(1, count + 1)) or plain != other)
END
}
