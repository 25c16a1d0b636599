# shellcheck shell=bash
# What the jobs of every scheduler share. An environment.sh of scripts/nscc or scripts/slurm sets the site's facts, then
# reads this file, then adds what its scheduler alone can say:
#
#   seconds_left           of this job's walltime
#   on_every_node COMMAND  on each node of the job, with the status that it has on this one
#   submit_again SCRIPT    the same job, with the variables in CARRIED

RECIPE=${RECIPE:-}
RUN=${RUN:-$(basename "${RECIPE:-run}" .toml)}       # the name of the run folder, and of the log
RUNS=$SCRATCH/cs336/runs
LOG=$SCRATCH/cs336/logs/$RUN.log
CACHE=$SCRATCH/cs336/cache
CONTAINER=${CONTAINER:-}                             # an apptainer image, where the system's glibc is too old
RESUBMISSIONS=${RESUBMISSIONS:-0}                    # so far
MAX_RESUBMISSIONS=${MAX_RESUBMISSIONS:-10}
MARGIN_MINUTES=${MARGIN_MINUTES:-10}                 # of the walltime, for the start and the last checkpoint
THREADS=${THREADS:-8}                                # of a rank; PBS would give each all of the node's
CARRIED=(RECIPE RUN GPUS THREADS SCRATCH CONTAINER MODULES RESUBMISSIONS MAX_RESUBMISSIONS MARGIN_MINUTES)
STOPPED=75                                           # cs336_alignment/command_line.py has the exit statuses
UNUSABLE=2
export "${CARRIED[@]}"

IN_CONTAINER=()
[[ -z $CONTAINER ]] || IN_CONTAINER=(apptainer exec --nv --bind "$SCRATCH" "$CONTAINER")

# Home folders are small, and compute nodes have no internet: stage.sh fills these.
export HF_HOME=$CACHE/huggingface VLLM_CACHE_ROOT=$CACHE/vllm UV_CACHE_DIR=$CACHE/uv
export TORCHINDUCTOR_CACHE_DIR=$CACHE/torchinductor TRITON_CACHE_DIR=$CACHE/triton
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=$THREADS
export UV_LINK_MODE=copy                             # the cache is on another file system
# For who starts torchrun or accelerate by hand: how long ranks may take to leave, and the signals to pass on to them (of
# torch 2.13; scripts/launch.py does both by itself).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900 PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1
mkdir -p "$RUNS" "$(dirname "$LOG")" "$CACHE"

# minutes_left: of this job's walltime, the margin taken off, with two decimals.
minutes_left() {
    local seconds
    seconds=$(seconds_left) || return
    seconds=$((seconds - 60 * MARGIN_MINUTES))
    if ((seconds <= 0)); then
        echo "no time to run: the walltime has to be longer than the margin of $MARGIN_MINUTES minutes" >&2
        return "$UNUSABLE"
    fi
    printf '%d.%02d\n' $((seconds / 60)) $((seconds % 60 * 100 / 60))
}

# train SCRIPT OPTION...: on every GPU of the job, from the latest checkpoint, until it is finished or time is short.
train() {
    local limit rendezvous=(--standalone)
    limit=$(minutes_left) || return
    if ((NODES > 1)); then
        rendezvous=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "$FIRST_NODE:29500" --rdzv-id "$JOB")
    fi
    on_every_node "${IN_CONTAINER[@]}" .venv/bin/python scripts/launch.py "${rendezvous[@]}" --nproc-per-node "$GPUS" \
        "$@" --output "$RUNS/$RUN" --resume auto --time-limit-minutes "$limit" --keep-checkpoints 2
}

# logged COMMAND: with all that it says in the log, whose end is shown where it fails.
logged() {
    local status=0
    echo "$RUN: $*; run folder $RUNS/$RUN, log $LOG"
    "$@" >>"$LOG" 2>&1 || status=$?
    ((status == 0 || status == STOPPED)) || tail -n 30 "$LOG"
    echo "$RUN: exit status $status"
    return "$status"
}

# run_and_resubmit SCRIPT COMMAND: the command; where it was stopped and can go on, the job SCRIPT once more. Not where it
# has finished or failed, and at most MAX_RESUBMISSIONS times.
run_and_resubmit() {
    local script=$1 status=0
    shift
    logged "$@" || status=$?
    if ((status == STOPPED && RESUBMISSIONS < MAX_RESUBMISSIONS)); then
        RESUBMISSIONS=$((RESUBMISSIONS + 1))
        submit_again "$script" || echo "$RUN: could not be submitted again; submit $script by hand, and it goes on"
    elif ((status == STOPPED)); then
        echo "$RUN: stopped after $RESUBMISSIONS resubmissions, the most there may be; submit $script by hand to go on"
    fi
    return "$status"
}

# baseline MODEL OPTION...: the test split, shared out over the GPUs; goes on where an earlier job was killed.
baseline() {
    local resume=()
    [[ ! -e $RUNS/$RUN/run.json ]] || resume=(--resume)
    "${IN_CONTAINER[@]}" .venv/bin/python scripts/launch.py --standalone --nproc-per-node "$GPUS" \
        -m cs336_alignment.math_baseline --data data/gsm8k/test.jsonl --model "$@" --output "$RUNS/$RUN" "${resume[@]}"
}
