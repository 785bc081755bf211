#!/usr/bin/env bash
# Makes .venv at the repository root, with what requirements.txt pins and mmdat itself (editable): bash tools/setup_env.sh
# Call it as often as you like: what is installed already is skipped, and an interrupted set-up is taken up again.
#   PYTHON=python3.11   the Python to make .venv with, otherwise the first of 3.12, 3.11 and 3.10 on PATH
#   MMCV_WHEELS=URL     an index with wheels of mmcv, instead of its makers'
#   MMDAT_CPU_ONLY=1    do without mmcv's CUDA ops although there is a GPU
#   MAX_JOBS=2          compiler processes at a time
set -euo pipefail
exec 3>&1 4>&2 # for messages, while the output of a step goes to the log
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv python=$root/.venv/bin/python log=$root/.venv/setup.log stamp=$root/.venv/setup.done
build=$(if command -v nvidia-smi >/dev/null && [[ ${MMDAT_CPU_ONLY:-0} != 1 ]]; then echo cu129; else echo cpu; fi)
wheels=${MMCV_WHEELS:-https://mmwheels.onedl.ai/$build-torch2100/simple/} # for the pinned torch

say() { printf 'set-up: %s\n' "$*" >&3; }
die() { printf 'set-up: %s\n' "$*" >&4 && exit 1; }
trap 'die "interrupted; calling this again goes on from here"' INT TERM
trap '[[ -z ${beat:-} ]] || kill "$beat"' EXIT

pins() { grep -E "^($1)==" "$root/requirements.txt"; }
recipe() { cat "$root"/{requirements.txt,setup.cfg,setup.py} - <<<"$root" | cksum; }

# Whether all is as after the last call: looking at files is faster than importing packages.
finished() {
    [[ -x $python && -e $stamp && $(<"$stamp") == "$(recipe)" ]] &&
        cat "$venv"/lib/python3*/site-packages/{torchvision/__init__.py,mmdet/__init__.py,mmcv/_ext.*,__editable__.mmdat-*} >/dev/null 2>&1
}

# Prints what a Python is, or nothing: it may be a pyenv shim, which is there but does not run.
kind() {
    "$1" -c 'import sys, importlib.util as util
print("Python %d.%d" % sys.version_info[:2] + ("" if util.find_spec("ensurepip") else " without venv"))' 2>/dev/null || true
}

make_venv() {
    local name is found='' names=(python3.12 python3.11 python3.10 python3)
    is=$(kind "$python")
    [[ $is != 'Python 3.1'[0-2]* ]] || return 0
    [[ -z $is ]] || die ".venv is $is, and 3.10, 3.11 or 3.12 is needed: remove $venv and call this again"
    [[ -z ${PYTHON:-} ]] || names=("$PYTHON")
    for name in "${names[@]}"; do
        is=$(kind "$name")
        found+="${found:+, }$name: ${is:-not there, or does not run}"
        [[ $is == 'Python 3.1'[0-2] ]] || continue
        say "making $venv with $name ($is)"
        "$name" -m venv --clear "$venv" && return
    done
    die "needs Python 3.10, 3.11 or 3.12 with its venv module (Debian, Ubuntu: apt-get install python3-venv)," \
        "on PATH or named in PYTHON=; tried $found"
}

# A killed pip leaves packages that look installed. pip writes INSTALLER and then RECORD last.
forget_half_installed() {
    local info
    for info in "$venv"/lib/python3*/site-packages/*.dist-info; do
        [[ ! -e $info || -e $info/RECORD && -e $info/INSTALLER ]] && continue
        say "$(basename "$info" .dist-info) is only half installed; installing it again"
        rm -rf "$info"
    done
    rm -rf "$venv"/lib/python3*/site-packages/~* # what pip was about to remove
}

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }
# All pins bind all steps, so that no step installs what a later one has to replace.
install() { pip install --progress-bar off --constraint "$root/requirements.txt" "$@"; }

find_wheel() {
    rm -rf "$venv/wheels"
    pip download --retries 1 --no-deps --only-binary :all: --index-url "$wheels" --dest "$venv/wheels" "$mmcv" &&
        wheel=$(echo "$venv"/wheels/*.whl)
}

check_compiler() {
    local headers why
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    why=$(${CXX:-c++} -std=c++17 -fsyntax-only -I "$headers" -x c++ - 2>&1 <<<'#include <Python.h>') ||
        die "there is no wheel of mmcv for this Python in $wheels, and to compile it needs a C++17 compiler and Python's" \
            "headers (Debian, Ubuntu: apt-get install g++ python3-dev; CXX= names another compiler): ${why%%$'\n'*}"
}

# mmcv compiles its CUDA ops whenever torch sees a GPU, with a toolkit of torch's major version.
check_cuda_compiler() {
    local cuda home
    cuda=$("$python" -I -c 'import torch; print(torch.version.cuda if torch.cuda.is_available() else "")')
    home=$("$python" -I -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "/usr/local/cuda")')
    [[ -z $cuda || $("$home/bin/nvcc" --version 2>&1) == *"release ${cuda%%.*}."* ]] ||
        die "this machine has a GPU, but $home/bin/nvcc is no compiler of CUDA ${cuda%%.*}. Install the toolkit of CUDA $cuda," \
            'which this PyTorch is made for, and name it in CUDA_HOME=, or set MMDAT_CPU_ONLY=1 to do without mmcv on the GPU.'
}

ops_work() {
    "$python" -I -c 'import torch; from mmcv.ops import get_compiling_cuda_version as version
assert not torch.cuda.is_available() or version() != "not available", "compiled without CUDA"'
}

# Under pip's build isolation mmcv sees no torch and installs, without a word, without its ops. And pip's cache of the
# wheels it built does not know for which torch. So no mmcv is trusted unseen.
install_mmcv() {
    # Two OpenCVs write the same files. The one that needs no libGL, which servers lack, must come last.
    [[ -n $wheel ]] && install "$wheel" && install --no-deps --force-reinstall "$opencv" && ops_work && return
    check_compiler && check_cuda_compiler
    say '      no wheel of mmcv serves: compiling it, typically 6 to 20 minutes on 2 cores, unless pip has it in its cache'
    install -v --no-build-isolation "$mmcv" && install --no-deps --force-reinstall "$opencv" || return
    ops_work && return
    say "      the mmcv installed here, or in pip's cache, has no ops that fit: compiling it again"
    pip cache remove 'onedl_mmcv*' || true
    install -v --no-build-isolation --no-deps --force-reinstall --no-binary onedl-mmcv "$mmcv" && ops_work
}

# step TITLE COMMAND: with its output in the log, and a sign of life every minute.
step() {
    local start=$SECONDS status=0
    say "[$((++number))/5] $1"
    while sleep 60 >/dev/null 3>&- && kill -0 $$; do say "      $(((SECONDS - start) / 60)) min"; done 2>/dev/null 4>&- 9<&- &
    beat=$!
    "${@:2}" >>"$log" 2>&1 || status=$?
    { kill "$beat" && wait "$beat" || true; } 2>/dev/null
    beat=
    ((status == 0)) && return
    tail -n 20 "$log" >&2
    die "failed; the whole log is $log; once the cause is mended, calling this again goes on from here"
}

finished && exit
exec 9<"$root"
flock --nonblock 9 || { say 'another set-up of this checkout is running; waiting for it' && flock 9; }
finished && exit
make_venv
forget_half_installed
: >"$log" && rm -f "$stamp"
number=0 wheel='' mmcv=$(pins onedl-mmcv) opencv=$(pins opencv-python-headless)
find_wheel >>"$log" 2>&1 || check_compiler # before anything large is downloaded
if [[ ${MMDAT_CPU_ONLY:-0} == 1 ]]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; fi
gigabytes=$(awk '/MemAvailable/ {print int($2 / 2500000)}' /proc/meminfo) # of which a compiler takes up to 2.5
export MAX_JOBS=${MAX_JOBS:-$((gigabytes < 1 ? 1 : gigabytes < $(nproc) ? gigabytes : $(nproc)))}

step 'build tools' install --requirement <(pins 'pip|setuptools|wheel|ninja|psutil')
step 'PyTorch (a download of about 3 GB, typically 2 minutes)' install --requirement <(pins 'torch|torchvision')
step 'mmcv' install_mmcv
step 'mmdet, mmsegmentation, mmpretrain and the test tools' install --requirement "$root/requirements.txt"
step 'mmdat' install --no-deps --no-build-isolation --editable "$root"
"$python" -I -c 'import mmdat, mmcv.ops, mmdet, mmseg, mmpretrain' ||
    die "what was installed cannot be imported; remove $venv and call this again"
recipe >"$stamp"
say "ready after $((SECONDS / 60)) min $((SECONDS % 60)) s"
