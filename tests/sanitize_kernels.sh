#!/usr/bin/env bash
# Runs the tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: bash tests/sanitize_kernels.sh
# It takes some minutes, so .ci/run leaves it out; run it after each change in mmdat/ops/native/csrc.
set -euo pipefail

CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
export XDG_CACHE_HOME=$cache MMDAT_CXXFLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover'
# Python frees little of its own at the end; torch's allocations before the preload are nobody's business here
export ASAN_OPTIONS=detect_leaks=0
preload="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)"
LD_PRELOAD=$preload .venv/bin/python -m pytest -q -k 'cpu or window' \
    tests/ops/deformable/test_backends.py tests/layers/test_window_attention.py "$@"
