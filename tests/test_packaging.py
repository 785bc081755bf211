"""The package as users install it: away from the checkout, and without the libraries that it can spare."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mmdat

REPO = Path(__file__).resolve().parents[1]
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']


def run(*command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def tracked_and_new_files():
    """What a commit of everything would hold."""
    listing = run('git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', cwd=REPO)
    return [name for name in listing.split('\0') if (REPO / name).is_file()]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A git checkout of the present files, from which something was built before."""
    source = tmp_path_factory.mktemp('source')
    for name in tracked_and_new_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, source / name)
    leftover = source / 'build/lib/mmdat/.mim/configs/removed_since.py'
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    git = ['git', '-c', 'user.name=test', '-c', 'user.email=test@example.org']
    run('git', 'init', '--quiet', cwd=source)
    run('git', 'add', '.', cwd=source)
    run(*git, 'commit', '--quiet', '--no-verify', '-m', 'all', cwd=source)
    return source


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    run(*PIP, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', folder, source)
    return next(folder.glob('*.whl'))


def test_wheel_carries_configs_and_tools(source, wheel):
    assert wheel.name == f'mmdat-{mmdat.__version__}-py3-none-any.whl'
    packed = zipfile.ZipFile(wheel).namelist()
    carried = [name.removeprefix('mmdat/.mim/') for name in packed if name.startswith('mmdat/.mim/')]
    names = [name for name in tracked_and_new_files() if name.startswith(('configs/', 'tools/'))]
    assert sorted(carried) == sorted([*names, 'model-index.yml'])
    assert not [name for name in packed if name.startswith(('tests/', 'configs/', 'tools/'))]
    kernels = [name for name in tracked_and_new_files() if name.startswith('mmdat/ops/native/csrc/')]
    assert kernels
    assert set(kernels) <= set(packed)


def test_build_leaves_the_checkout_clean(source, wheel):
    assert run('git', 'status', '--porcelain', cwd=source) == ''
    assert not (source / 'mmdat/.mim').exists()


def test_source_distribution_builds_the_same_wheel(source, wheel, tmp_path):
    build = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    run(sys.executable, '-c', build, tmp_path, cwd=source)
    sdist = next(tmp_path.glob('*.tar.gz'))
    run(*PIP, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', tmp_path, sdist)
    rebuilt = next(tmp_path.glob('*.whl'))
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_installed_package_works_without_the_checkout(wheel, tmp_path):
    run(*PIP, 'install', '--no-deps', '--no-index', '--target', tmp_path / 'site', wheel)
    script = """
from pathlib import Path
import mmdat
from mmengine.config import Config

package = Path(mmdat.__file__).parent
print(package)
config = Config.fromfile(package / '.mim/configs/mask_rcnn/dat_t_1x_coco.py')
print(config.model.backbone.type)
for metafile in Config.fromfile(package / '.mim/model-index.yml').Import:
    assert (package / '.mim' / metafile).exists(), metafile
"""
    environment = os.environ | {'PYTHONPATH': str(tmp_path / 'site')}
    output = run(sys.executable, '-c', script, cwd=tmp_path, env=environment)
    assert output.split() == [str(tmp_path / 'site/mmdat'), 'mmdat.DAT']


def test_backbone_needs_only_torch_and_mmengine():
    script = """
import sys

class Absent:
    names = 'mmcv mmdet mmseg mmpretrain torchvision timm cv2 pycocotools scipy'.split()

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in self.names:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Absent())
import torch
from mmdat.backbones import DAT

with torch.no_grad():
    print([tuple(x.shape) for x in DAT(arch='tiny').eval()(torch.rand(1, 3, 64, 96))])
"""
    expected = [(1, 96, 16, 24), (1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    assert run(sys.executable, '-c', script).strip() == str(expected)
