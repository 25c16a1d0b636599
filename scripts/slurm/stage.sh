#!/bin/bash
# On the login node, once, and again where something changed:
#   ACCOUNT=name bash scripts/slurm/stage.sh
#   ACCOUNT=name CUDA=12 bash scripts/slurm/stage.sh Qwen/Qwen2.5-Math-1.5B allenai/OLMo-2-0425-1B
# CUDA=12 or 13 where the login node has no GPU; CONTAINER=IMAGE.sif where its glibc is too old (docs/cluster.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${ACCOUNT:?ACCOUNT=NAME bash scripts/slurm/stage.sh: what sbatch --account charges}"
# shellcheck source=scripts/slurm/environment.sh
source scripts/slurm/environment.sh
# shellcheck source=scripts/cluster/stage.sh
source scripts/cluster/stage.sh

sed -i "s/^#SBATCH --account=.*/#SBATCH --account=$ACCOUNT/" scripts/slurm/*.sbatch
(($# > 0)) || set -- Qwen/Qwen2.5-Math-1.5B
stage "$@"
