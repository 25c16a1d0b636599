# shellcheck shell=bash
# The facts of NSCC's ASPIRE 2A that the jobs here need, in one place. They are from its public page on queues, and change:
# check the site's page. stage.sh writes the project into the headers of the jobs, where qsub reads it.
#
# Queue normal, 4 GPUs: up to 2 hours a job counts as a debug run (2 at a time, 16 GPUs in all), up to 24 as a usual one, up
# to 120 as a long one. At most 100 jobs a user.

SCRATCH=${SCRATCH:-$HOME/scratch}
MODULES=${MODULES:-}                                 # what `module load` has to load; the wheels bring their own CUDA
GPUS=${GPUS:-4}                                      # on a node, as in the headers: select=1:ngpus=4
JOB=${PBS_JOBID:-}
NODES=1 FIRST_NODE=$HOSTNAME
if [[ -r ${PBS_NODEFILE:-} ]]; then
    NODES=$(uniq "$PBS_NODEFILE" | wc -l) FIRST_NODE=$(head -n 1 "$PBS_NODEFILE")
fi
# shellcheck disable=SC2086
[[ -z $MODULES ]] || module load $MODULES

# shellcheck source=scripts/cluster/job.sh
source scripts/cluster/job.sh

# seconds_left: of the walltime, by PBS's own figures.
seconds_left() {
    local job limit used
    job=$(qstat -f "$PBS_JOBID") || return
    limit=$(sed -n 's/^ *Resource_List\.walltime = //p' <<<"$job")
    used=$(sed -n 's/^ *resources_used\.walltime = //p' <<<"$job") # not there in a job's first moments
    if [[ -z $limit ]]; then
        echo "qstat -f $PBS_JOBID tells no walltime" >&2
        return "$UNUSABLE"
    fi
    echo $(($(in_seconds "$limit") - $(in_seconds "${used:-00:00:00}")))
}

# in_seconds HH:MM:SS
in_seconds() {
    local hours minutes seconds
    IFS=: read -r hours minutes seconds <<<"$1"
    echo $((3600 * 10#$hours + 60 * 10#$minutes + 10#$seconds))
}

# on_every_node COMMAND: here, and by PBS's own pbsdsh on the job's other nodes, which start with a bare environment.
on_every_node() {
    local node status=0
    for ((node = 1; node < NODES; node++)); do
        pbsdsh -n "$node" -- /bin/bash -c "$(elsewhere "$@")" &
    done
    "$@" || status=$?
    wait
    return "$status"
}

elsewhere() {
    printf 'cd %q && SCRATCH=%q THREADS=%q MODULES=%q CONTAINER=%q && source scripts/nscc/environment.sh && exec ' \
        "$PWD" "$SCRATCH" "$THREADS" "$MODULES" "$CONTAINER"
    printf '%q ' "$@"
}

# submit_again SCRIPT: the script without the header that would make it an array once more.
submit_again() {
    sed '/^#PBS -J/d' "$1" | qsub -v "$(IFS=, && echo "${CARRIED[*]}")"
}
