#!/usr/bin/env bash
# Evaluate on all GPUs of a machine: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
set -euo pipefail
if (($# < 3)); then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
exec bash "$(dirname "$0")/dist_run.sh" "$gpus" test.py "$config" "$checkpoint" "${@:4}"
