#!/usr/bin/env bash
# Train with Slurm: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
set -euo pipefail
if (($# < 4)); then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 work_dir=$4
exec bash "$(dirname "$0")/slurm_run.sh" "$partition" "$job_name" train.py "$config" \
    --work-dir "$work_dir" "${@:5}"
