#!/usr/bin/env bash
# Evaluate with Slurm: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
set -euo pipefail
if (($# < 4)); then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 checkpoint=$4
exec bash "$(dirname "$0")/slurm_run.sh" "$partition" "$job_name" test.py "$config" "$checkpoint" "${@:5}"
