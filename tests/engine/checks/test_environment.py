import subprocess
import sys

import pytest

from mmdat.engine.checks.environment import check_mmcv_ops

# Takes the module by itself. -S puts the installed mmcv out of reach: the stand-in is all there is.
CHECK = 'import sys; sys.path[:0] = sys.argv[1:]; import environment; environment.check_mmcv_ops()'
UTILS = check_mmcv_ops.__code__.co_filename.rpartition('/')[0]


def check_in(folder):
    return subprocess.run(
        [sys.executable, '-S', '-c', CHECK, str(folder), UTILS], capture_output=True, text=True, check=False
    )


def test_installed_ops_pass():
    check_mmcv_ops()


def test_no_mmcv(tmp_path):
    result = check_in(tmp_path)
    assert result.returncode == 1
    assert 'ImportError: mmcv is not installed.' in result.stderr
    assert 'bash tools/setup_env.sh' in result.stderr


@pytest.mark.parametrize(
    ('ops', 'cause'),
    [
        ('from . import _ext', "cannot import name '_ext'"),  # built without PyTorch
        ('raise ImportError("undefined symbol: x")', 'undefined symbol: x'),  # built for another PyTorch
    ],
)
def test_mmcv_without_working_ops(tmp_path, ops, cause):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'ops.py').write_text(ops)
    result = check_in(tmp_path)
    assert result.returncode == 1
    message = result.stderr.partition('direct cause of the following exception')[2]
    assert f'mmcv is installed ({package}/__init__.py), but its compiled ops are missing' in message
    assert cause in message
    assert '--no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv' in message
