#!/usr/bin/env bash
# Usage: slurm_run.sh PARTITION JOB_NAME SCRIPT ARGUMENTS...  GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS as
# with OpenMMLab's scripts.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

if ! command -v srun > /dev/null; then
    echo "error: srun not found, this machine has no Slurm; use tools/dist_train.sh or tools/dist_test.sh" >&2
    exit 1
fi
partition=$1 job_name=$2 script=$3
shift 3
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -ra srun_args <<< "${SRUN_ARGS:-}"
exec srun --partition="$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${srun_args[@]+"${srun_args[@]}"} \
    "$PYTHON" -u "$ROOT/tools/$script" "$@" --launcher slurm
