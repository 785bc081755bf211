#!/usr/bin/env bash
# Train on all GPUs of a machine: bash tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
exec bash "$(dirname "$0")/dist_run.sh" "$gpus" train.py "$config" "${@:3}"
