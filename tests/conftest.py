from pathlib import Path

import pytest
from mmengine.config import Config

from mmdat.ops.deformable.backends import cpu

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / 'shared' / 'data'


def pytest_addoption(parser):
    parser.addoption(
        '--full', action='store_true', help='repeat the experiments of tests/reliability as often as docs say'
    )


@pytest.fixture
def trials(request):
    """`trials(short, full)`: how often to repeat an experiment, in CI and with `--full`."""
    return lambda short, full: full if request.config.getoption('--full') else short


@pytest.fixture
def mask_rcnn_config() -> Config:
    return Config.fromfile(ROOT / 'configs/mask_rcnn/dat_t_1x_coco.py')


@pytest.fixture
def coco_root() -> Path:
    """A few real images of COCO, in its layout."""
    if not (DATA / 'coco').is_dir():
        pytest.skip(f'needs the sample of COCO in {DATA / "coco"}')
    return DATA / 'coco'


@pytest.fixture(params=['reference', 'portable', 'cpu'])
def backend(request) -> str:
    """Name of each backend of deformable attention that this machine has."""
    if request.param == 'cpu':
        kernel, obstacle = cpu.load()
        if kernel is None:
            pytest.skip(obstacle)
    return request.param
