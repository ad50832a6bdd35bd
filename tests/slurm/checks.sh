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
