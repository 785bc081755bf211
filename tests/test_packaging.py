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


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Runs Python code where the wheel is installed and the checkout is not."""
    site, folder = tmp_path_factory.mktemp('site'), tmp_path_factory.mktemp('elsewhere')
    run(*PIP, 'install', '--no-deps', '--no-index', '--target', site, wheel)
    environment = os.environ | {'PYTHONPATH': str(site), 'SITE': str(site)}
    return lambda script: run(sys.executable, '-c', script, cwd=folder, env=environment)


def test_installed_package_works_without_the_checkout(installed):
    script = """
import os
from pathlib import Path
import mmdat
from mmengine.config import Config

package = Path(mmdat.__file__).parent
assert package == Path(os.environ['SITE'], 'mmdat')
config = Config.fromfile(package / '.mim/configs/mask_rcnn/dat_t_1x_coco.py')
print(config.model.backbone.type)
for metafile in Config.fromfile(package / '.mim/model-index.yml').Import:
    assert (package / '.mim' / metafile).exists(), metafile
"""
    assert installed(script).strip() == 'mmdat.DAT'


def test_configs_by_name(installed):
    """In `_base_`, with mmdat imported and without, and from MMEngine's hub, for all three libraries."""
    script = """
import sys
from pathlib import Path
from mmengine.config import Config

Path('imports.py').write_text("_base_ = __import__('mmdat') and 'mmdat::mask_rcnn/dat_t_3x_coco.py'")
assert 'mmdat' not in sys.modules
found = [Config.fromfile('imports.py').train_cfg.max_epochs]

from mmengine.hub import get_config, get_model
from mmdat.released import RELEASED

def scopes(node):
    if isinstance(node, dict):
        yield from [node['_scope_']] if '_scope_' in node else []
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from scopes(child)

names = 'retinanet/dat_t_1x_coco', 'semantic_fpn/dat_t_40k_ade20k', 'imagenet/dat_t_300e_in1k'
for name in names:
    model = get_model(f'mmdat::{name}.py')
    found += [type(model).__module__.partition('.')[0], type(model.backbone).__name__]
    Path('inherits.py').write_text(f"_base_ = 'mmdat::{name}.py'\\nwork_dir = 'mine'")
    cfg = Config.fromfile('inherits.py')
    assert cfg.work_dir == 'mine'
    assert 'mmdat' not in set(scopes(cfg.to_dict()))

cfg = get_config('mmdat::retinanet/dat_pp_t_1x_coco.py', pretrained=True)
assert cfg.model_path == RELEASED['dat_pp_tiny_retinanet_1x'].url
from mmdet.apis import DetInferencer
print(*found, type(DetInferencer(cfg, device='cpu').model).__name__)
"""
    expected = '36 mmdet DAT mmseg DAT mmpretrain DAT RetinaNet'
    assert installed(script).splitlines()[-1] == expected


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
