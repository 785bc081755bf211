#!/usr/bin/env bash
# Makes .venv at the repository root: what requirements.txt pins, and mmdat itself (editable).
#
#   bash tools/setup_env.sh
#
# Call it as often as you like: finished steps are skipped, an interrupted one is taken up again.
#   PYTHON=python3.12   the Python to make .venv with, otherwise the first of 3.10 to 3.12 on PATH
#   MMDAT_CPU_ONLY=1    do without mmcv's CUDA ops although there is a GPU
#   MAX_JOBS=2          compiler processes at a time
set -euo pipefail
exec 3>&1 # progress goes here while the output of a step goes to its log
trap 'die "interrupted; calling this again goes on from here"' INT TERM

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
state=$venv/setup # a stamp and a log of each step
steps=(build torch mmcv libraries mmdat)
beat='' # process that reports progress

on_terminal() { [[ -t 3 ]]; }
clear_line() { ! on_terminal || printf '\r\033[K' >&3; }
say() { clear_line && printf 'set-up: %s\n' "$*" >&3; }
die() { clear_line && printf 'set-up: %s\n' "$*" >&2 && exit 1; }

title() {
    case $1 in
        build) echo 'build tools' ;;
        torch) echo 'PyTorch (a download of about 3 GB, typically 2 minutes)' ;;
        mmcv) echo 'mmcv, compiled with its ops (typically 6 to 20 minutes on 2 cores)' ;;
        libraries) echo 'mmdet, mmsegmentation, mmpretrain and the test tools (typically 1 minute)' ;;
        mmdat) echo 'mmdat' ;;
    esac
}

pins() { grep -E "^($1)==" "$root/requirements.txt"; }

# What a step is made from. It holds the recipes before it: a new torch brings up mmcv again.
recipe() {
    case $1 in
        build) pins 'pip|setuptools|wheel|ninja|psutil' ;;
        torch) recipe build && pins 'torch|torchvision|numpy' ;;
        mmcv) recipe torch && pins 'onedl-mmcv|onedl-mmengine|opencv-python.*' ;;
        libraries) recipe mmcv && pins '.*' ;;
        mmdat) recipe libraries && cat "$root/setup.cfg" "$root/setup.py" && echo "$root" ;;
    esac
}

# A file that a finished step leaves behind: faster than importing the package, and gone when it is uninstalled.
witness() {
    case $1 in
        build) echo 'setuptools/__init__.py' ;;
        torch) echo 'torchvision/__init__.py' ;;
        mmcv) echo 'mmcv/_ext.*' ;;
        libraries) echo 'mmdet/__init__.py' ;;
        mmdat) echo '__editable__.mmdat-*' ;;
    esac
}

left_behind() { compgen -G "$venv/lib/python3*/site-packages/$(witness "$1")" >/dev/null; }

finished() {
    [[ -x $python && -e $state/$1.done ]] || return
    [[ $(cat "$state/$1.done") == "$(recipe "$1" | cksum)" ]] && left_behind "$1"
}

all_finished() {
    local step
    for step in "${steps[@]}"; do finished "$step" || return; done
}

# Prints why a Python does not serve, or nothing. It may be a pyenv shim, which is there but does not run.
why_not() {
    "$1" - 2>/dev/null <<'PY' || echo 'does not run'
import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    print('is Python %d.%d' % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
    except ImportError:
        print('has no venv module (Debian, Ubuntu: apt-get install python%d.%d-venv)' % sys.version_info[:2])
PY
}

find_python() {
    local name why found='' names=(python3.11 python3.12 python3.10 python3)
    [[ -z ${PYTHON:-} ]] || names=("$PYTHON")
    for name in "${names[@]}"; do
        command -v "$name" >/dev/null || continue
        why=$(why_not "$name")
        [[ -z $why ]] && echo "$name" && return
        found+="${found:+, }$name $why"
    done
    die "needs Python 3.10, 3.11 or 3.12 (${found:-found no ${PYTHON:-python3} on PATH});" \
        'install one, or name it in PYTHON='
}

# mmcv's ops need both. Asked before anything is downloaded.
check_compiler() {
    local cxx include
    read -ra cxx <<<"${CXX:-c++}"
    command -v "${cxx[0]}" >/dev/null ||
        die "needs a C++ compiler, found no ${cxx[0]} on PATH (Debian, Ubuntu: apt-get install g++);" \
            'CXX= can name another'
    "${cxx[@]}" -std=c++17 -fsyntax-only -x c++ - <<<'int main() {}' 2>/dev/null ||
        die "needs a C++17 compiler, but ${cxx[*]} -std=c++17 does not compile an empty program"
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [[ -e $include/Python.h ]] ||
        die "needs Python's C headers, but $1 has no $include/Python.h (Debian, Ubuntu: apt-get install python3-dev)"
}

# mmcv compiles its CUDA ops whenever torch sees a GPU, with a toolkit of torch's major version.
check_cuda_compiler() {
    local why
    why=$("$python" -I - 2>/dev/null <<'PY'
import re, subprocess, torch
from torch.utils.cpp_extension import CUDA_HOME

if torch.cuda.is_available():
    wanted = torch.version.cuda
    try:
        report = subprocess.check_output([f'{CUDA_HOME}/bin/nvcc', '--version'], text=True)
        found = re.search(r'release ([\d.]+)', report).group(1)
        if found.split('.')[0] != wanted.split('.')[0]:
            print(f'nvcc in {CUDA_HOME} is of CUDA {found}, while this PyTorch needs {wanted.split(".")[0]}.x')
    except (OSError, subprocess.CalledProcessError, AttributeError):
        print(f'there is no CUDA compiler (nvcc), and this PyTorch needs that of CUDA {wanted.split(".")[0]}.x')
PY
    )
    [[ -z $why ]] || die "this machine has a GPU, but $why." \
        'Install that CUDA toolkit and name it in CUDA_HOME=, or set MMDAT_CPU_ONLY=1 to do without mmcv on the GPU.'
}

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

# All pins bind all steps, so that no step installs what a later one has to replace.
install() { pip install --progress-bar off --constraint "$root/requirements.txt" "$@"; }

install_build() { install --requirement <(pins 'pip|setuptools|wheel|ninja|psutil'); }

install_torch() { install --requirement <(pins 'torch|torchvision') && "$python" -I -c 'import torch, torchvision'; }

ops_work() {
    "$python" -I - <<'PY'
import torch
from mmcv.ops import get_compiling_cuda_version

if torch.cuda.is_available() and get_compiling_cuda_version() == 'not available':
    raise ImportError('mmcv.ops was compiled without CUDA')
PY
}

# Under pip's build isolation mmcv sees no torch and installs, without a word, without its ops. And pip's cache of the
# wheels it built does not know for which torch: neither an installed mmcv nor a cached one is to be trusted unseen.
install_mmcv() {
    local mmcv
    mmcv=$(pins onedl-mmcv)
    install -v --no-build-isolation "$mmcv" && headless_opencv || return
    ops_work && return
    say "      the mmcv installed here, or in pip's cache, has no ops that fit: compiling it again"
    pip cache remove 'onedl_mmcv*' || true
    install -v --no-build-isolation --no-deps --force-reinstall --no-binary onedl-mmcv "$mmcv" && ops_work
}

# Both OpenCVs are required by somebody and write the same files. The one without windows must come last: the other
# needs libGL, which servers do not have.
headless_opencv() { install --no-deps --force-reinstall "$(pins opencv-python-headless)"; }

install_libraries() { install --requirement "$root/requirements.txt"; }

install_mmdat() {
    install --no-deps --no-build-isolation --editable "$root" &&
        "$python" -I -c 'import mmdat, mmcv.ops, mmdet, mmseg, mmpretrain'
}

lock() {
    command -v flock >/dev/null || return 0
    exec 9<"$root"
    flock --nonblock 9 && return
    say 'another set-up of this checkout is running; waiting for it'
    flock 9
}

make_venv() {
    local base why
    if [[ -x $python ]] && why=$(why_not "$python") && [[ $why != 'does not run' ]]; then
        [[ $why != 'is Python '* ]] ||
            die ".venv $why, and 3.10, 3.11 or 3.12 is needed: remove $venv and call this again"
        left_behind mmcv || check_compiler "$python"
        pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 || true
        pip --version >/dev/null 2>&1 && return
    fi
    base=$(find_python)
    check_compiler "$base"
    say "making $venv with $("$base" --version)"
    "$base" -m venv --clear "$venv" || die "$base could not make $venv"
}

# A killed pip leaves packages that look installed. pip writes INSTALLER and then RECORD last.
forget_half_installed() {
    "$python" -I - <<'PY'
import csv, shutil, sysconfig
from pathlib import Path

site = Path(sysconfig.get_path('purelib'))
for info in site.glob('*.dist-info'):
    record = info / 'RECORD'
    if record.exists() and (info / 'INSTALLER').exists():
        files = [path for path, digest, _ in csv.reader(record.read_text().splitlines()) if digest]
        if all((site / path).exists() for path in files):
            continue
    print(f'set-up: {info.name.removesuffix(".dist-info")} is only half installed; installing it again')
    shutil.rmtree(info)
for renamed in site.glob('~*'):  # what pip was about to remove
    shutil.rmtree(renamed, ignore_errors=True)
PY
}

elapsed() { printf '%d:%02d' $(((SECONDS - $1) / 60)) $(((SECONDS - $1) % 60)); }

# The last thing that pip or ninja said about how far it is.
how_far() {
    local news='\[[0-9]+/[0-9]+\]|(Collecting|Downloading|Processing) [^ ]+|Building wheel|Installing collected'
    tail -c 100000 "$1" | grep -oE "$news" | tail -n 1
}

# Tells about the step in progress: every second on a terminal, every minute in a log.
heartbeat() {
    local log=$1 start=$SECONDS ticks=0
    while sleep 1 && kill -0 $$ 2>/dev/null; do
        if on_terminal; then
            printf '\r\033[K      %s %s' "$(elapsed "$start")" "$(how_far "$log")" >&3
        elif ((++ticks % 60 == 0)); then
            say "      $(elapsed "$start") $(how_far "$log")"
        fi
    done
}

stop_heartbeat() {
    if [[ -n $beat ]] && kill "$beat"; then wait "$beat" || true; fi 2>/dev/null
    beat=''
}

run_step() {
    local step=$1 log=$state/$1.log start=$SECONDS status=0
    mkdir -p "$state" && rm -f "$state/$step.done"
    : >"$log"
    heartbeat "$log" 9<&- &
    beat=$!
    trap stop_heartbeat EXIT
    "install_$step" >"$log" 2>&1 || status=$?
    stop_heartbeat
    if ((status)); then
        say "failed after $(elapsed "$start"), saying last:"
        tail -n 20 "$log" >&2
        die "the whole log is $log; once the cause is mended, calling this again goes on from here"
    fi
    recipe "$step" | cksum >"$state/$step.done"
}

limit_compilers() {
    local cores memory # a compiler process of mmcv takes up to 2.5 GB
    cores=$(nproc)
    memory=$(awk '/MemAvailable/ {print int($2 / 2500000)}' /proc/meminfo)
    ((memory >= 1)) || memory=1
    export MAX_JOBS=${MAX_JOBS:-$((memory < cores ? memory : cores))}
}

main() {
    local i step
    all_finished && return
    lock
    all_finished && return

    make_venv
    forget_half_installed
    limit_compilers
    if [[ ${MMDAT_CPU_ONLY:-0} == 1 ]]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; fi
    for i in "${!steps[@]}"; do
        step=${steps[i]}
        finished "$step" && continue
        say "[$((i + 1))/${#steps[@]}] $(title "$step")"
        [[ $step != mmcv ]] || ops_work 2>/dev/null || check_cuda_compiler
        run_step "$step"
    done
    say "ready after $(elapsed 0)"
}

main
