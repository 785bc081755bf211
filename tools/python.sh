# Sourced by the launch scripts: sets ROOT, and PYTHON to that of the active environment, else of the repository's
# own .venv.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} && -x $ROOT/.venv/bin/python ]]; then
    PYTHON=$ROOT/.venv/bin/python
else
    PYTHON=python
fi
