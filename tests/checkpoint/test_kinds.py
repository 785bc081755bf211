"""Files of another kind of model are told apart by names, and the configs that fit are named."""

import pytest
import torch
from conftest import ROOT
from mmengine.registry import MODELS, DefaultScope

from mmdat.apis.models import count_classes
from mmdat.architectures import ARCHITECTURES
from mmdat.checkpoint import CheckpointError
from mmdat.checkpoint.contents import Weights
from mmdat.checkpoint.kinds import check_kind, find_kind
from mmdat.engine import load_config

CLASSES = dict(cascade_mask_rcnn=80, mask_rcnn=80, retinanet=80, upernet=150, semantic_fpn=150, imagenet=1000)
SEGMENTOR = ['backbone.x', 'decode_head.conv_seg.weight']


@pytest.mark.parametrize('folder', CLASSES)
def test_kinds_of_the_configs(folder):
    cfg = load_config(str(min((ROOT / 'configs' / folder).glob('dat_t_*.py'))))
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert find_kind(model.state_dict()).folder == folder
    assert count_classes(model) == CLASSES[folder]


def weights(*names, arch='tiny'):
    row = ARCHITECTURES.get(arch)
    identity = dict(generation='cvpr', embed_dims=16, depths=(2, 2, 2, 2))
    if row:
        identity = dict(generation=row.generation, embed_dims=row.embed_dims, depths=row.depths)
    return Weights('x.pth', dict.fromkeys(names, torch.zeros(1)), identity if arch else {})


@pytest.mark.parametrize(
    ('names', 'arch', 'message'),
    [
        (
            ['decode_head.psp_modules.0.x'],
            'tiny',
            'holds UperNet, .* fits configs/upernet/dat_t_160k_ade20k.py',
        ),
        (['decode_head.psp_modules.0.x'], 'pp_base', 'fits configs/upernet/dat_pp_b_160k_ade20k.py'),
        (
            ['decode_head.scale_heads.0.x'],
            'mine',
            'it fits a config of configs/semantic_fpn with its own back',
        ),
        (
            ['roi_head.bbox_head.fc_cls.x'],
            'small',
            r'configs/mask_rcnn/dat_s_1x_coco\.py, \S*dat_s_3x_coco\.py',
        ),
        (['roi_head.bbox_head.0.fc_cls.x'], 'base', r'configs/cascade_mask_rcnn/dat_b_3x_coco\.py'),
        (['head.fc.weight'], 'pp_tiny', r'holds a classifier, .*configs/imagenet/dat_pp_t_300e_in1k\.py'),
        (['bbox_head.x'], 'tiny', 'holds a detector, but the model is RetinaNet$'),
        ([], 'tiny', 'holds a backbone without heads, but .* RetinaNet; a training can start from it'),
        (['head.fc.weight'], None, 'holds no DAT, but backbone.x, head.fc.weight, where the model has one'),
    ],
)
def test_what_would_fit(names, arch, message):
    with pytest.raises(CheckpointError, match=f'^x.pth .*{message}') as info:
        check_kind(weights('backbone.x', *names, arch=arch), ['backbone.x', 'bbox_head.retina_cls.x'], True)
    assert '\n' not in str(info.value)


def test_the_same_kind_passes():
    check_kind(weights(*SEGMENTOR), SEGMENTOR, True)
    check_kind(weights(*SEGMENTOR, arch=None), SEGMENTOR, False)
    check_kind(weights('backbone.x'), ['backbone.x'], True)
    check_kind(weights('backbone.x', 'mine.x'), ['other.x'], True)
