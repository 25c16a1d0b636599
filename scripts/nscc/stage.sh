#!/bin/bash
# On the login node, once, and again where something changed:
#   PROJECT=12345678 bash scripts/nscc/stage.sh
#   PROJECT=12345678 CUDA=12 bash scripts/nscc/stage.sh Qwen/Qwen2.5-Math-1.5B allenai/OLMo-2-0425-1B
# CUDA=12 or 13 where the login node has no GPU; CONTAINER=IMAGE.sif where its glibc is too old (docs/cluster.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${PROJECT:?PROJECT=ID bash scripts/nscc/stage.sh: the allocation that qsub -P charges}"
# shellcheck source=scripts/nscc/environment.sh
source scripts/nscc/environment.sh
# shellcheck source=scripts/cluster/stage.sh
source scripts/cluster/stage.sh

sed -i "s/^#PBS -P .*/#PBS -P $PROJECT/" scripts/nscc/*.pbs
(($# > 0)) || set -- Qwen/Qwen2.5-Math-1.5B
stage "$@"
