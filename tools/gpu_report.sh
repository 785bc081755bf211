#!/usr/bin/env bash
# Everything that only a GPU can show, in one folder: bash tools/gpu_report.sh [OUT]
#
#   OUT is work_dirs/gpu_report of the repository by default. Correctness, times, then compute-sanitizer where there is
#   one. All of it runs whatever fails; the exit code is 1 if something did.
set -uo pipefail
# shellcheck source=python.sh
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"
out=${1:-$ROOT/work_dirs/gpu_report}
mkdir -p -- "$out" || exit 1
code=0

"$PYTHON" -m mmdat.check --device cuda --no-times --out "$out/check.md" || code=1
"$PYTHON" "$ROOT/tools/benchmark_ops.py" --device cuda --repeats 50 | tee "$out/ops.md" || code=1
"$PYTHON" "$ROOT/tools/benchmark_backbones.py" --device cuda --repeats 20 | tee "$out/backbones.md" || code=1
if command -v compute-sanitizer >/dev/null; then
    # without PyTorch's cache, which hides what lies beyond a tensor
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \
        "$PYTHON" -m mmdat.check --device cuda --no-times --quick | tee "$out/sanitizer.txt" || code=1
fi
exit "$code"
