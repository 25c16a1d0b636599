# shellcheck shell=bash
# What a login node with internet has to get before jobs on nodes without it: environment, models, data. Every step may be
# repeated, and does again only what is missing. An environment.sh was read before.

declare -A OLDEST_GLIBC=([12]=2.31 [13]=2.28)   # of vLLM's wheels, by their tags; RHEL 8 has 2.28
OLDEST_DRIVER=580                               # of CUDA 13
export HF_HUB_OFFLINE=0

# stage MODEL...: hub names; each goes to data/models/, its name in lower case.
stage() {
    local stack
    stack=$(cuda_stack)
    check_glibc "$stack"
    install "$stack"
    for model in "$@"; do
        download "$model" "data/models/$(basename "${model,,}")"
    done
    "${IN_CONTAINER[@]}" .venv/bin/python scripts/prepare_gsm8k.py
    echo "staged: CUDA $stack environment, $* in data/models, GSM8K in data/gsm8k, caches and runs in $SCRATCH/cs336"
}

# check_glibc STACK
check_glibc() {
    local glibc oldest=${OLDEST_GLIBC[$1]}
    glibc=$("${IN_CONTAINER[@]}" ldd --version | sed -n '1s/.* //p')
    if [[ $(printf '%s\n' "$oldest" "$glibc" | sort -V | sed -n 1p) != "$oldest" ]]; then
        echo "glibc here is $glibc, and vLLM's wheels for CUDA $1 need $oldest: build the container of docs/cluster.md" \
            "(scripts/cluster/container.def), and stage with CONTAINER=IMAGE.sif" >&2
        exit "$UNUSABLE"
    fi
}

# cuda_stack: 13 or 12, as CUDA says, else by the driver here.
cuda_stack() {
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n 1p) || true
    if [[ -n ${CUDA:-} ]]; then
        echo "$CUDA"
    elif [[ -z $driver ]]; then
        echo "no GPU here to ask for its driver: stage with CUDA=13 where nvidia-smi on a GPU node shows driver" \
            "$OLDEST_DRIVER or newer, else with CUDA=12" >&2
        exit "$UNUSABLE"
    elif ((${driver%%.*} >= OLDEST_DRIVER)); then
        echo 13
    else
        echo 12
    fi
}

install() {
    if [[ $1 == 13 ]]; then
        "${IN_CONTAINER[@]}" uv sync --locked --extra gpu
    else
        "${IN_CONTAINER[@]}" uv venv --python 3.11 --allow-existing
        "${IN_CONTAINER[@]}" uv pip install --no-config --only-binary vllm -r docs/requirements-cuda12.txt
        "${IN_CONTAINER[@]}" uv pip install --no-config --no-deps -e .
    fi
}

download() {
    mkdir -p "$2"
    "${IN_CONTAINER[@]}" .venv/bin/hf download "$1" --local-dir "$2"
}
