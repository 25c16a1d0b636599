# shellcheck shell=bash
# The facts of a SLURM site that the jobs here need, in one place: the twin of scripts/nscc/environment.sh. Partition,
# account and what a node has are in the jobs' headers; check your site's page.

SCRATCH=${SCRATCH:-$HOME/scratch}
MODULES=${MODULES:-}                                 # what `module load` has to load; the wheels bring their own CUDA
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-4}}               # on a node
JOB=${SLURM_JOB_ID:-}
NODES=${SLURM_JOB_NUM_NODES:-1} FIRST_NODE=$HOSTNAME
((NODES == 1)) || FIRST_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)   # head would end the pipe early
# shellcheck disable=SC2086
[[ -z $MODULES ]] || module load $MODULES

# shellcheck source=scripts/cluster/job.sh
source scripts/cluster/job.sh

# seconds_left: of the walltime, by SLURM's own figure.
seconds_left() {
    local left
    left=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %L) || return
    if [[ $left != *[0-9]:[0-9]* ]]; then
        echo "squeue tells no time left for job $SLURM_JOB_ID ($left): give the job a --time" >&2
        return "$UNUSABLE"
    fi
    in_seconds "$left"
}

# in_seconds [[DAYS-]HOURS:]MINUTES:SECONDS
in_seconds() {
    local days=0 clock=$1 hours minutes seconds
    if [[ $clock == *-* ]]; then
        days=${clock%-*} clock=${clock#*-}
    fi
    [[ $clock == *:*:* ]] || clock=0:$clock
    IFS=: read -r hours minutes seconds <<<"$clock"
    echo $((86400 * 10#$days + 3600 * 10#$hours + 60 * 10#$minutes + 10#$seconds))
}

# on_every_node COMMAND: a task a node; srun passes the signal of the header on, and has the highest status of its tasks.
on_every_node() {
    srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" # it does not take over the header's CPUs
}

# submit_again SCRIPT: sbatch hands the variables on by itself; of an array, the member that this is.
submit_again() {
    sbatch ${SLURM_ARRAY_TASK_ID:+--array="$SLURM_ARRAY_TASK_ID"} "$1"
}
