#!/usr/bin/env bash
# Makes .venv at the repository root: what requirements.txt pins, and mmdat itself (editable).
#
#   bash tools/setup_env.sh
#
# Call it as often as you like: what is installed already is skipped, and an interrupted set-up is taken up again.
#   PYTHON=python3.12   the Python to make .venv with, otherwise the first of 3.10 to 3.12 on PATH
#   MMDAT_CPU_ONLY=1    do without mmcv's CUDA ops although there is a GPU
#   MAX_JOBS=2          compiler processes at a time
set -euo pipefail
exec 3>&1 # for messages, while the output of a step goes to the log
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv python=$root/.venv/bin/python log=$root/.venv/setup.log stamp=$root/.venv/setup.done

say() { printf 'set-up: %s\n' "$*" >&3; }
die() { printf 'set-up: %s\n' "$*" >&2 && exit 1; }
trap 'die "interrupted; calling this again goes on from here"' INT TERM

pins() { grep -E "^($1)==" "$root/requirements.txt"; }
recipe() { cat "$root"/{requirements.txt,setup.cfg,setup.py} - <<<"$root" | cksum; }

# Whether all is as after the last call: looking at files is faster than importing packages.
finished() {
    local left_behind
    [[ -x $python && -e $stamp && $(cat "$stamp") == "$(recipe)" ]] || return
    for left_behind in torchvision/__init__.py 'mmcv/_ext.*' mmdet/__init__.py '__editable__.mmdat-*'; do
        compgen -G "$venv/lib/python3*/site-packages/$left_behind" >/dev/null || return
    done
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
    local include
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    ${CXX:-c++} -std=c++17 -fsyntax-only -x c++ - 2>/dev/null <<<'int main() {}' ||
        die "needs a C++17 compiler, but \`${CXX:-c++} -std=c++17\` does not compile an empty program" \
            '(Debian, Ubuntu: apt-get install g++; CXX= names another one)'
    [[ -e $include/Python.h ]] ||
        die "needs Python's C headers, but $1 has no $include/Python.h (Debian, Ubuntu: apt-get install python3-dev)"
}

# mmcv compiles its CUDA ops whenever torch sees a GPU, with a toolkit of torch's major version.
check_cuda_compiler() {
    local why
    why=$("$python" -I - 2>/dev/null <<'PY' || echo 'there is no CUDA compiler (nvcc)'
import re, subprocess, torch
from torch.utils.cpp_extension import CUDA_HOME
if torch.cuda.is_available():
    report = subprocess.check_output([f'{CUDA_HOME}/bin/nvcc', '--version'], text=True)
    found = re.search(r'release ([\d.]+)', report).group(1)
    if found.split('.')[0] != torch.version.cuda.split('.')[0]:
        print(f'nvcc in {CUDA_HOME} is of CUDA {found}')
PY
    )
    [[ -z $why ]] || die "this machine has a GPU, but $why. Install the toolkit of CUDA" \
        "$("$python" -I -c 'import torch; print(torch.version.cuda)'), which this PyTorch is made for, and name it in" \
        'CUDA_HOME=, or set MMDAT_CPU_ONLY=1 to do without mmcv on the GPU.'
}

make_venv() {
    local base why
    if [[ -x $python ]] && why=$(why_not "$python") && [[ $why != 'does not run' ]]; then
        [[ -z $why ]] || die ".venv $why, and 3.10, 3.11 or 3.12 is needed: remove $venv and call this again"
        check_compiler "$python"
        return
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

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

# All pins bind all steps, so that no step installs what a later one has to replace.
install() { pip install --progress-bar off --constraint "$root/requirements.txt" "$@"; }

ops_work() {
    "$python" -I - <<'PY'
import torch
from mmcv.ops import get_compiling_cuda_version
assert not torch.cuda.is_available() or get_compiling_cuda_version() != 'not available', 'compiled without CUDA'
PY
}

# Under pip's build isolation mmcv sees no torch and installs, without a word, without its ops. And pip's cache of the
# wheels it built does not know for which torch: neither an installed mmcv nor a cached one is to be trusted unseen.
install_mmcv() {
    local mmcv opencv
    mmcv=$(pins onedl-mmcv) opencv=$(pins opencv-python-headless)
    # Two OpenCVs write the same files. The one that needs no libGL, which servers lack, must come last.
    install -v --no-build-isolation "$mmcv" && install --no-deps --force-reinstall "$opencv" || return
    ops_work && return
    say "      the mmcv installed here, or in pip's cache, has no ops that fit: compiling it again"
    pip cache remove 'onedl_mmcv*' || true
    install -v --no-build-isolation --no-deps --force-reinstall --no-binary onedl-mmcv "$mmcv" && ops_work
}

how_far() { tail -c 9999 "$log" | grep -oE '\[[0-9]+/[0-9]+\]|(Collecting|Downloading) [^ ]+' | tail -n 1; }

# step TITLE COMMAND: with its output in the log, telling how far it is every minute.
step() {
    local start=$SECONDS status=0 beat
    say "[$((++number))/5] $1"
    while sleep 60 >/dev/null 3>&- && kill -0 $$; do say "      $(((SECONDS - start) / 60)) min $(how_far)"; done 2>/dev/null 9<&- &
    beat=$!
    "${@:2}" >>"$log" 2>&1 || status=$?
    { kill "$beat" && wait "$beat" || true; } 2>/dev/null
    ((status == 0)) && return
    tail -n 20 "$log" >&2
    die "failed; the whole log is $log; once the cause is mended, calling this again goes on from here"
}

finished && exit
if command -v flock >/dev/null; then
    exec 9<"$root"
    flock --nonblock 9 || { say 'another set-up of this checkout is running; waiting for it' && flock 9; }
    finished && exit
fi
make_venv
forget_half_installed
: >"$log" && rm -f "$stamp"
number=0
if [[ ${MMDAT_CPU_ONLY:-0} == 1 ]]; then export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0; fi
gigabytes=$(awk '/MemAvailable/ {print int($2 / 2500000)}' /proc/meminfo) # of which a compiler takes up to 2.5
export MAX_JOBS=${MAX_JOBS:-$((gigabytes < 1 ? 1 : gigabytes < $(nproc) ? gigabytes : $(nproc)))}

step 'build tools' install --requirement <(pins 'pip|setuptools|wheel|ninja|psutil')
step 'PyTorch (a download of about 3 GB, typically 2 minutes)' install --requirement <(pins 'torch|torchvision')
ops_work 2>/dev/null || check_cuda_compiler
step 'mmcv, compiled with its ops (typically 6 to 20 minutes on 2 cores)' install_mmcv
step 'mmdet, mmsegmentation, mmpretrain and the test tools' install --requirement "$root/requirements.txt"
step 'mmdat' install --no-deps --no-build-isolation --editable "$root"
"$python" -I -c 'import mmdat, mmcv.ops, mmdet, mmseg, mmpretrain' || die 'what was installed cannot be imported'
recipe >"$stamp"
say "ready after $((SECONDS / 60)) min $((SECONDS % 60)) s"
