#!/usr/bin/env bash
# A real Slurm of two nodes, n1 and n2, on this machine: slurmctld, two slurmd and munged, with all their files in one
# folder. No file of the system is touched, and a Slurm that runs here already is not disturbed. Needs root, because
# slurmd does; installs Debian's slurm-wlm and munge where they are missing.
#
#     tests/slurm/cluster.sh start FOLDER       then: export SLURM_CONF=FOLDER/slurm.conf
#     tests/slurm/cluster.sh stop FOLDER        ends its jobs and daemons, also after a start that failed
set -euo pipefail

fail() {
    echo "cluster.sh: error: $*" >&2
    exit 1
}

# within SECONDS COMMAND…: repeat it until it succeeds; fails when the time is over.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

need_slurm() {
    [[ $EUID == 0 ]] || fail "needs root: slurmd starts jobs as their users; run it as root or in a container"
    if ! type slurmctld slurmd munged &> /dev/null; then
        command -v apt-get > /dev/null || fail "no slurmctld, slurmd or munged, and no apt-get: install Slurm and MUNGE"
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install --yes slurm-wlm munge
    fi
}

# The first of three ports in a row on which nobody listens.
free_ports() {
    local port
    for port in {17000..17990..10}; do
        listening "$port" || listening $((port + 1)) || listening $((port + 2)) || break
    done
    echo "$port"
}

listening() {
    (: < "/dev/tcp/127.0.0.1/$1") 2> /dev/null
}

# Nodes have what slurm/*.sh ask for, whatever this machine has (config_overrides): it will be slower, no more. A job in
# the partition `urgent` preempts those in `all`, which is the default: they have GraceTime to end by themselves. A
# requeued job waits for cred_expire, two minutes on most clusters.
configuration() {
    local host port
    host=$(uname -n)
    host=${host%%.*}
    port=$(free_ports)
    cat << END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$FOLDER/munge.socket,cred_expire=10
StateSaveLocation=$FOLDER/state
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdSpoolDir=$FOLDER/spool.%n
SlurmdPidFile=$FOLDER/slurmd.%n.pid
SlurmdLogFile=$FOLDER/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=1
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=8 RealMemory=16384
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=8 RealMemory=16384
PartitionName=all Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
END
}

start() {
    need_slurm
    [[ ! -e $SLURM_CONF ]] || fail "$SLURM_CONF: exists; stop that cluster first, or give another folder"
    mkdir -p "$FOLDER"/{state,spool.n1,spool.n2}
    (umask 077 && head -c 1024 /dev/urandom > "$FOLDER/munge.key")
    configuration > "$SLURM_CONF"
    if [[ ! $(slurmctld -V) =~ \ (1|2[0-2])[0-9.]+$ ]]; then # since 23, slurmd looks for cgroups; a container has none
        echo CgroupPlugin=disabled > "$FOLDER/cgroup.conf"
    fi

    # By force: the folder may be private, as only root speaks to this munged.
    munged --force --origin=127.0.0.1 --key-file="$FOLDER/munge.key" --socket="$FOLDER/munge.socket" \
        --pid-file="$FOLDER/munged.pid" --log-file="$FOLDER/munged.log" --seed-file="$FOLDER/munged.seed" ||
        fail "munged does not start: $(last munged)"
    slurmctld || fail "slurmctld does not start: $(last slurmctld)"
    for node in n1 n2; do
        slurmd -N $node || fail "slurmd of $node does not start: $(last slurmd.$node)"
    done
    within 30 both_idle || fail "nodes are not idle after 30 s: $(last slurmctld); n1: $(last slurmd.n1)"
}

both_idle() {
    [[ $(sinfo --noheader --Node --partition=all --format=%t 2> /dev/null) == idle$'\n'idle ]]
}

last() {
    tail --quiet --lines=1 "$FOLDER/$1.log" 2> /dev/null || echo "it wrote no log"
}

stop() {
    [[ -e $SLURM_CONF ]] || return 0
    local pid daemons
    mapfile -t daemons < <(cat "$FOLDER"/{slurmctld,slurmd.n1,slurmd.n2,munged}.pid 2> /dev/null)
    if [[ -e $FOLDER/slurmctld.pid ]]; then # no job shall outlive the daemons
        timeout 5 scancel --user=root --state=PENDING || true
        timeout 5 scancel --user=root --full --signal=KILL || true
        within 10 no_jobs || echo "cluster.sh: jobs are still running" >&2
    fi
    for pid in "${daemons[@]}"; do
        kill "$pid" 2> /dev/null || true
    done
    for pid in "${daemons[@]}"; do
        within 10 dead "$pid" || kill -KILL "$pid" 2> /dev/null || true
    done
    for pid in $(orphans); do
        kill -KILL "$pid" 2> /dev/null || true
    done
    rm -f "$SLURM_CONF" "$FOLDER"/*.pid
}

# Processes of its jobs, as their environment says: without cgroups, Slurm loses those whose parent has died.
orphans() {
    grep --files-with-matches --null-data --fixed-strings --line-regexp "SLURM_CONF=$SLURM_CONF" \
        /proc/[0-9]*/environ 2> /dev/null | while read -r file; do
        ! grep --quiet --null-data ^SLURM_JOB_ID= "$file" 2> /dev/null || basename "${file%/environ}"
    done
}

no_jobs() {
    local left
    left=$(timeout 5 squeue --noheader) && [[ -z $left ]]
}

dead() { # or a zombie, which nobody reaps in some containers
    [[ $(awk '/^State:/ { print $2 }' "/proc/$1/status" 2> /dev/null) != [^Z] ]]
}

[[ $# == 2 && $1 =~ ^(start|stop)$ ]] || fail "expected: cluster.sh start FOLDER, or cluster.sh stop FOLDER"
FOLDER=$(realpath --canonicalize-missing -- "$2")
export SLURM_CONF=$FOLDER/slurm.conf
"$1"
