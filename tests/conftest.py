from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / 'shared' / 'data'


@pytest.fixture
def mask_rcnn_config() -> Config:
    return Config.fromfile(ROOT / 'configs/mask_rcnn/dat_t_1x_coco.py')


@pytest.fixture
def coco_root() -> Path:
    """A few real images of COCO, in its layout."""
    if not (DATA / 'coco').is_dir():
        pytest.skip(f'needs the sample of COCO in {DATA / "coco"}')
    return DATA / 'coco'
