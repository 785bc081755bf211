#!/usr/bin/env bash
# Usage: dist_run.sh PROCESSES SCRIPT ARGUMENTS...  One process for each GPU; on CPUs they talk over gloo.
# Several nodes: NNODES, NODE_RANK, MASTER_ADDR and PORT as with OpenMMLab's scripts; all but NODE_RANK are the same on
# each. They wait RDZV_TIMEOUT seconds for each other, by default 900.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

processes=$1 script=$2
shift 2
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of GPUs must be a positive number, got '$processes'" >&2
    exit 2
fi
script=$ROOT/tools/$script
# What is started here ends with this process, even when it is killed; torchrun takes its place below.
export MMDAT_LAUNCHER=$$
# Once, before torchrun multiplies every message.
RANK=0 LOCAL_WORLD_SIZE=$processes "$PYTHON" "$script" "$@" --launcher pytorch --preflight
[[ " $* " != *' --check '* ]] || exit 0
# torchrun would set one thread each, which leaves CPU training idle
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((($(nproc) - 1) / processes) + 1))}
nodes=${NNODES:-1} address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500} limit=${RDZV_TIMEOUT:-900}
options=()
# torchrun hears SIGHUP even under nohup, and would end the run with the terminal.
if [[ -n $(trap -p HUP) && $("$PYTHON" -m torch.distributed.run --help) == *--signals-to-handle* ]]; then
    options=(--signals-to-handle SIGTERM,SIGINT,SIGQUIT)
fi
if [[ $nodes != 1 ]]; then
    echo "node ${NODE_RANK:-0} of $nodes: meeting the others at $address:$port, within $limit seconds" >&2
fi
exec "$PYTHON" -m torch.distributed.run ${options[@]+"${options[@]}"} \
    --nnodes="$nodes" --node_rank="${NODE_RANK:-0}" \
    --master_addr="$address" --master_port="$port" --rdzv_conf="timeout=$limit" \
    --nproc_per_node="$processes" \
    "$script" "$@" --launcher pytorch
