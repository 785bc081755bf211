#!/usr/bin/env bash
# Runs the tests, after the set-up where it is still to do: bash tests/run.sh [pytest arguments]
# Paths among the arguments count from the repository root. Files are shared out to processes, more than there are cores because some
# tests wait for processes of their own; at most 8, because each loads all libraries.
set -euo pipefail

CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
# Threads that wait for others sleep: spinning ones slow down whatever else runs on the machine, tools under test too.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
cores=$(nproc)
exec .venv/bin/python -m pytest --numprocesses $((cores < 4 ? 2 * cores : 8)) --dist loadfile --no-loadscope-reorder "$@"
