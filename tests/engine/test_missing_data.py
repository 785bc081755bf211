"""What is missing is said in one line before a run begins."""

from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config

from mmdat.engine import PreflightError, load_config, preflight

CONFIGS = ROOT / 'configs'


def config(name: str, data_root: Path) -> Config:
    cfg = load_config(str(CONFIGS / f'{name}.py'), {'data_root': str(data_root)})
    cfg.load_from = cfg.model.backbone.init_cfg = None
    return cfg


@pytest.mark.parametrize(
    ('name', 'path', 'source'),
    [
        ('retinanet/dat_t_1x_coco', 'coco', 'cocodataset.org'),
        ('cascade_mask_rcnn/dat_b_3x_coco', 'coco', 'make_demo_data.py'),
        ('semantic_fpn/dat_s_40k_ade20k', 'ade', 'sceneparsing.csail.mit.edu'),
        ('imagenet/dat_t_300e_in1k', 'imagenet', 'image-net.org'),
    ],
)
@pytest.mark.parametrize('training', [True, False])
def test_data_set_that_is_not_there(tmp_path, name, path, source, training):
    with pytest.raises(PreflightError) as error:
        preflight(config(name, tmp_path / path), training)
    for part in (str(tmp_path / path), source, 'data_root=DIR'):
        assert part in str(error.value)


def test_split_of_imagenet_that_is_not_there(tmp_path):
    with pytest.raises(PreflightError, match=f'train data {tmp_path}/train does not exist'):
        preflight(config('imagenet/dat_t_300e_in1k', tmp_path), training=True)


def imagenet_folder(root: Path, classes: int) -> Path:
    for split in ('train', 'val'):
        for n in range(classes):
            (root / split / f'n{n:08}').mkdir(parents=True)
        (root / split / 'n00000000' / '1.JPEG').touch()
    return root


def test_imagenet_with_other_classes(tmp_path):
    cfg = config('imagenet/dat_t_300e_in1k', imagenet_folder(tmp_path, 30))
    with pytest.raises(PreflightError, match=f'{tmp_path}/train has 30 class folders, ImageNet-1K has 1000'):
        preflight(cfg, training=True)
    with pytest.raises(PreflightError, match=f'{tmp_path}/val has 30 class folders'):
        preflight(cfg, training=False)


def test_imagenet_with_its_classes_or_a_list_of_files(tmp_path):
    preflight(config('imagenet/dat_t_300e_in1k', imagenet_folder(tmp_path / 'folders', 1000)), training=True)
    listed = tmp_path / 'listed'
    for split in ('train', 'val'):
        (listed / split).mkdir(parents=True)
        (listed / 'meta').mkdir(exist_ok=True)
        (listed / 'meta' / f'{split}.txt').write_text('1.jpg 999\n')
        (listed / split / '1.jpg').touch()
    preflight(config('imagenet/dat_t_300e_in1k', listed), training=True)


def test_pretrained_weights_come_before_the_data(tmp_path):
    cfg = config('retinanet/dat_t_1x_coco', tmp_path / 'coco')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=f'{tmp_path}/dat.pth')
    with pytest.raises(PreflightError, match=f'{tmp_path}/dat.pth'):
        preflight(cfg, training=True)
