"""tools/setup_env.sh, run in a copy of the repository with a stand-in for pip: no network, no compiling."""

import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
TOOLS = 'awk basename bash cat cksum dirname env flock grep mkdir nproc rm sh sleep tail'.split()

# Leaves behind what an installation would, and a line for each call.
FAKE_PIP = """
import os, re, sys
from pathlib import Path

args = sys.argv[1:]
if '--version' in args:
    sys.exit()
site = Path(__file__).resolve().parents[1]
with open(os.environ['PIP_CALLS'], 'a') as calls:
    requirements = [args[i + 1] for i, arg in enumerate(args) if arg == '--requirement']
    wanted = ' '.join([Path(path).read_text() for path in requirements] + args)
    names = re.findall(r'([a-z-]+)==', re.sub('#.*', '', wanted))
    words = [arg for arg in args if arg in ('cache', 'download', '--editable', '--force-reinstall')]
    wheels = [Path(arg).name for arg in args if arg.endswith('.whl')]
    calls.write(' '.join(words + names + wheels) + '\\n')

def leave(path, text=''):
    (site / path).parent.mkdir(parents=True, exist_ok=True)
    (site / path).write_text(text)

if 'download' in args:
    if args[args.index('--index-url') + 1] != os.environ.get('INDEX_WITH_WHEEL'):
        sys.exit('no matching distribution')
    folder = Path(args[args.index('--dest') + 1])
    folder.mkdir()
    (folder / 'onedl_mmcv-9.whl').touch()
    sys.exit()
if os.environ.get('PIP_FAILS', 'nothing') in names:
    sys.exit(f'no network for {names}')
if 'setuptools' in names:
    leave('setuptools/__init__.py')
if 'torch' in names:
    gpu = "os.environ.get('GPU') == '1' and os.environ.get('CUDA_VISIBLE_DEVICES') != ''"
    leave('torch/__init__.py', 'import os\\nfrom . import cuda, version')
    leave('torch/cuda.py', f'import os\\ndef is_available(): return {gpu}')
    leave('torch/version.py', "cuda = '12.8'")
    leave('torch/utils/cpp_extension.py', "import os\\nCUDA_HOME = os.environ.get('CUDA_HOME')")
    leave('torchvision/__init__.py')
if ('onedl-mmcv' in names and len(names) == 1) or wheels:
    leave('mmcv/__init__.py')
    if '--force-reinstall' in args or os.environ.get('MMCV') != 'without ops':
        leave('mmcv/_ext.py')
        cuda = "'12.8'" if os.environ.get('GPU') == '1' else "'not available'"
        leave('mmcv/ops.py', f'from . import _ext\\ndef get_compiling_cuda_version(): return {cuda}')
if 'pytest' in names:
    for library in ('mmdet', 'mmseg', 'mmpretrain'):
        leave(f'{library}/__init__.py')
if '--editable' in args:
    leave('mmdat/__init__.py')
    leave('__editable__.mmdat-0.1.0.pth')
"""

DOWNLOAD, BUILD, TORCH, MMCV, OPENCV = (
    'download onedl-mmcv',
    'pip setuptools wheel ninja psutil',
    'torch torchvision',
    'onedl-mmcv',
    '--force-reinstall opencv-python-headless',
)


class Checkout:
    """A copy of what the script reads, and a PATH with only what the test puts there."""

    def __init__(self, folder):
        self.root = folder / 'a checkout'
        self.bin = folder / 'bin'
        self.calls = folder / 'calls'
        self.env = {'PATH': str(self.bin), 'PIP_CALLS': str(self.calls), 'HOME': str(folder)}
        for path in ('tools/setup_env.sh', 'requirements.txt', 'setup.cfg', 'setup.py'):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / path, self.root / path)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def add_command(self, name, script):
        path = self.bin / name
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)

    def add_python(self, name='python3.11', prelude='pass', venv=True):
        """Adds a Python that runs `prelude` first; its venvs hold the stand-in for pip."""
        fake_pip = self.bin.parent / 'fake_pip.py'
        fake_pip.write_text(FAKE_PIP)
        self.add_command(
            name,
            f"""case "$1" in
            -) exec '{sys.executable}' -c "import sys; {prelude}; exec(sys.stdin.read())" ;;
            -c) exec '{sys.executable}' -c "import sys; {prelude}; $2" ;;
            -m) '{sys.executable}' -m venv --without-pip --clear "$4"
                site=$(echo "$4"/lib/python3*/site-packages)
                mkdir "$site/pip" && cat '{fake_pip}' >"$site/pip/__main__.py" ;;
            *) exec '{sys.executable}' "$@" ;;
            esac""",
        )

    def add_compiler(self):
        self.add_command('c++', 'exit 0')

    @property
    def python(self):
        return self.root / '.venv/bin/python'

    @property
    def site(self):
        return next(self.root.glob('.venv/lib/python3*/site-packages'))

    def start(self, **env):
        return subprocess.Popen(
            ['bash', self.root / 'tools/setup_env.sh'],
            cwd='/',
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set_up(self, **env):
        """Calls the script; returns exit status, output, error output and the calls of pip."""
        self.calls.write_text('')
        process = self.start(**env)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err, self.calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout):
    """A checkout after the first call."""
    checkout.add_python()
    checkout.add_compiler()
    status, _, err, _ = checkout.set_up()
    assert (status, err) == (0, '')
    return checkout


def test_no_python(checkout):
    status, out, err, _ = checkout.set_up()
    assert (status, out) == (1, '')
    assert err.count('\n') == 1
    assert 'needs Python 3.10, 3.11 or 3.12 with its venv module (Debian, Ubuntu: apt-get install' in err
    assert 'python3: not there' in err


def test_unfit_pythons(checkout):
    checkout.add_command('python3.12', 'exit 127')  # as a pyenv shim
    checkout.add_python('python3.11', prelude="sys.modules['ensurepip'] = None")
    checkout.add_python('python3', prelude='sys.version_info = (3, 13, 0)')
    status, _, err, _ = checkout.set_up()
    assert status == 1
    assert err.count('\n') == 1
    assert 'python3.12: not there, or does not run, python3.11: Python 3.11 without venv' in err
    assert 'python3: Python 3.13' in err


def test_named_python(checkout):
    checkout.add_python('python3.11')
    checkout.add_python('mine', prelude='sys.version_info = (3, 9, 0)')
    status, _, err, _ = checkout.set_up(PYTHON='mine')
    assert status == 1
    assert 'mine: Python 3.9' in err


def test_neither_wheel_nor_compiler(checkout):
    checkout.add_python()
    status, _, err, calls = checkout.set_up()
    assert status == 1
    assert calls == [DOWNLOAD]
    assert err.count('\n') == 1
    assert 'no wheel of mmcv for this Python in https://mmwheels.onedl.ai/' in err
    assert "needs a C++17 compiler and Python's headers (Debian, Ubuntu: apt-get install g++" in err
    assert 'c++: ' in err


def test_named_compiler_is_asked_for_pythons_headers(checkout):
    checkout.add_python()
    checkout.add_compiler()
    checkout.add_command('g++-4', 'echo "$@" "$(cat)" >&2; exit 1')
    status, _, err, _ = checkout.set_up(CXX='g++-4')
    assert status == 1
    assert err.count('\n') == 1
    assert err.endswith(f'-I {sysconfig.get_path("include")} -x c++ - #include <Python.h>\n')


def test_the_wheels_are_for_the_pinned_torch():
    version = re.search('^torch==(.*)$', (REPO / 'requirements.txt').read_text(), re.MULTILINE)[1]
    assert f'-torch{version.replace(".", "")}/' in (REPO / 'tools/setup_env.sh').read_text()


def test_wheels_with_cuda_ops_are_for_gpus(checkout):
    checkout.add_python()
    assert '/cpu-torch2100/' in checkout.set_up()[2]
    checkout.add_command('nvidia-smi', 'exit 0')
    assert '/cu129-torch2100/' in checkout.set_up()[2]
    assert '/cpu-torch2100/' in checkout.set_up(MMDAT_CPU_ONLY='1')[2]


def test_a_wheel_saves_the_compiler(checkout):
    checkout.add_python()
    status, out, err, calls = checkout.set_up(MMCV_WHEELS='file:///index', INDEX_WITH_WHEEL='file:///index')
    assert (status, err) == (0, '')
    assert 'compiling' not in out
    assert calls[:5] == [DOWNLOAD, BUILD, TORCH, 'onedl_mmcv-9.whl', OPENCV]
    assert 'onedl-mmdetection' in calls[5]


def test_a_wheel_whose_ops_do_not_work_is_replaced(checkout):
    checkout.add_python()
    env = dict(MMCV_WHEELS='file:///index', INDEX_WITH_WHEEL='file:///index', MMCV='without ops')
    status, _, err, _ = checkout.set_up(**env)
    assert status == 1
    assert "needs a C++17 compiler and Python's headers" in err

    checkout.add_compiler()
    status, out, _, calls = checkout.set_up(**env)
    assert status == 0
    assert 'no wheel of mmcv serves: compiling it' in out
    assert calls[3:7] == ['onedl_mmcv-9.whl', OPENCV, MMCV, OPENCV]
    assert calls[7:9] == ['cache', '--force-reinstall onedl-mmcv']


def test_first_call_installs_step_by_step_and_the_second_is_quiet(checkout):
    checkout.add_python()
    checkout.add_compiler()
    status, out, err, calls = checkout.set_up()
    assert (status, err) == (0, '')
    titles = [line.split()[1] for line in out.splitlines() if '[' in line]
    assert titles == [f'[{i}/5]' for i in range(1, 6)]
    assert calls[:5] == [DOWNLOAD, BUILD, TORCH, MMCV, OPENCV]
    assert 'onedl-mmdetection' in calls[5]
    assert calls[6:] == ['--editable']

    start = time.monotonic()
    assert checkout.set_up() == (0, '', '', [])
    assert time.monotonic() - start < 2


def test_goes_on_after_a_failure(checkout):
    checkout.add_python()
    checkout.add_compiler()
    status, _, err, calls = checkout.set_up(PIP_FAILS='onedl-mmcv')
    assert status == 1
    assert calls == [DOWNLOAD, BUILD, TORCH, MMCV]
    assert "no network for ['onedl-mmcv']" in err
    assert 'calling this again goes on from here' in err

    status, _, _, calls = checkout.set_up()
    assert status == 0
    assert calls[:4] == [DOWNLOAD, BUILD, TORCH, MMCV], 'pip itself skips what is there'
    assert calls[-1] == '--editable'


def test_mmcv_without_ops_is_reported_and_compiled_again(checkout):
    checkout.add_python()
    checkout.add_compiler()
    status, out, _, calls = checkout.set_up(MMCV='without ops')
    assert status == 0
    assert "the mmcv installed here, or in pip's cache, has no ops that fit" in out
    assert calls[3:7] == [MMCV, OPENCV, 'cache', '--force-reinstall onedl-mmcv']


def test_uninstalled_ops_are_missed(ready):
    (ready.site / 'mmcv/_ext.py').unlink()
    status, _, _, calls = ready.set_up()
    assert status == 0
    assert calls[3:5] == [MMCV, OPENCV]
    assert (ready.site / 'mmcv/_ext.py').exists()


def test_new_pins_are_installed(ready):
    requirements = ready.root / 'requirements.txt'
    requirements.write_text(requirements.read_text().replace('ruff==', 'ruff==1'))
    status, _, _, calls = ready.set_up()
    assert status == 0
    assert 'ruff' in calls[5]
    assert ready.set_up() == (0, '', '', [])


def test_gpu_without_cuda_compiler(checkout):
    checkout.add_python()
    checkout.add_compiler()
    status, _, err, calls = checkout.set_up(GPU='1')
    assert status == 1
    assert calls == [DOWNLOAD, BUILD, TORCH]
    assert '/usr/local/cuda/bin/nvcc is no compiler of CUDA 12. Install the toolkit of CUDA 12.8' in err
    assert 'MMDAT_CPU_ONLY=1' in err

    cuda = checkout.bin.parent / 'cuda'
    (cuda / 'bin').mkdir(parents=True)
    nvcc = cuda / 'bin/nvcc'
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.88"\n')
    nvcc.chmod(0o755)
    status, _, err, _ = checkout.set_up(GPU='1', CUDA_HOME=str(cuda))
    assert status == 1
    assert f'{cuda}/bin/nvcc is no compiler of CUDA 12.' in err

    assert checkout.set_up(GPU='1', MMDAT_CPU_ONLY='1')[0] == 0
    assert checkout.set_up(GPU='1') == (0, '', '', [])


def test_broken_venv_is_made_anew(ready):
    ready.python.unlink()
    ready.python.symlink_to('/nowhere/python3')
    status, out, _, calls = ready.set_up()
    assert status == 0
    assert f'making {ready.root}/.venv' in out
    assert len(calls) == 7


def test_venv_of_another_version_is_left_alone(checkout):
    checkout.add_python()
    checkout.add_compiler()
    checkout.python.parent.mkdir(parents=True)
    shutil.copy(checkout.bin / 'python3.11', checkout.python)
    script = checkout.python.read_text().replace('pass', 'sys.version_info = (3, 13, 0)')
    checkout.python.write_text(script)
    status, _, err, _ = checkout.set_up()
    assert status == 1
    assert '.venv is Python 3.13' in err
    assert checkout.python.read_text() == script


def test_half_installed_package_is_installed_again(ready):
    whole, killed = (ready.site / f'{name}-1.0.dist-info' for name in ('whole', 'killed'))
    for info in (whole, killed):
        info.mkdir()
        (info / 'INSTALLER').write_text('pip')
    (whole / 'RECORD').touch()
    (ready.site / '~emoved').mkdir()
    (ready.root / '.venv/setup.done').unlink()
    status, out, _, _ = ready.set_up()
    assert status == 0
    assert 'killed-1.0 is only half installed' in out
    assert whole.exists()
    assert not killed.exists()
    assert not (ready.site / '~emoved').exists()


def test_calls_at_the_same_time_take_turns(checkout):
    checkout.add_python()
    checkout.add_compiler()
    processes = [checkout.start() for _ in range(2)]
    outputs = sorted((process.communicate(timeout=120)[0] for process in processes), key=len)
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == 'set-up: another set-up of this checkout is running; waiting for it\n'
    assert len(checkout.calls.read_text().splitlines()) == 7
