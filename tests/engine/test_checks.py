"""Configs of the libraries that look wrong and are not."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdat.engine.checks.building import check_classes, try_data, try_model
from mmdat.engine.checks.names import check_top_level


@pytest.mark.parametrize(
    'name',
    [
        'mmdet/rpn/rpn_r50_fpn_1x_coco.py',  # its only head has no classes
        'mmseg/stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',  # a head for borders, with two classes
        'mmseg/unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py',  # the data set wants its files when it is built
        'mmpretrain/lenet/lenet5_mnist.py',  # gray images of one size
    ],
)
def test_nothing_is_refused(name):
    library, _, path = name.partition('/')
    cfg = Config.fromfile(Path(find_spec(library).origin).parent / '.mim/configs' / path)
    init_default_scope(cfg.default_scope)
    check_top_level(cfg.keys())
    model = try_model(cfg)
    check_classes(model, 'train', try_data(cfg, 'train', is_there=library == 'mmdet'))


def test_variables_are_not_slips():
    check_top_level(['conv_cfg', 'test_pipeline', 'train_dataset', 'dataset_type', 'crop_size', '_model'])
