"""Images without objects, or with ignored ones only, give finite losses and gradients."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.narrow import narrow
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from mmdat.engine import load_config


def small_model(name: str, scope: str) -> torch.nn.Module:
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'))
    narrow(cfg.model)
    for node in ('decode_head', 'auxiliary_head'):
        if node in cfg.model:
            cfg.model[node].norm_cfg = dict(type='BN')
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg.model).train()


def assert_finite(model: torch.nn.Module, data: dict) -> dict:
    data = model.data_preprocessor(data, True)
    loss, parts = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return parts


@pytest.mark.parametrize('name', ['retinanet/dat_t_1x_coco', 'mask_rcnn/dat_t_1x_coco'])
@pytest.mark.parametrize('boxes', ['none', 'crowds'])
@pytest.mark.parametrize('size', [(64, 64), (1, 1), (1, 200)])
def test_detector_learns_from_images_without_objects(name, boxes, size):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    torch.manual_seed(0)
    model = small_model(name, 'mmdet')

    def instances(boxes: torch.Tensor) -> InstanceData:
        masks = BitmapMasks(np.ones((len(boxes), *size), np.uint8), *size)
        return InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long), masks=masks)

    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    sample.gt_instances = instances(torch.zeros(0, 4))
    crowd = torch.tensor([[0.0, 0.0, *reversed(size)]])
    sample.ignored_instances = instances(crowd if boxes == 'crowds' else torch.zeros(0, 4))
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    parts = assert_finite(model, dict(inputs=[image], data_samples=[sample]))
    for part in ('loss_bbox', 'loss_mask'):
        assert parts.get(part, torch.tensor(0.0)) == 0, 'there is no object to fit'


@pytest.mark.parametrize('name', ['semantic_fpn/dat_t_40k_ade20k', 'upernet/dat_t_160k_ade20k'])
@pytest.mark.parametrize('size', [(64, 64), (1, 64)])
def test_segmentor_learns_nothing_from_ignored_pixels(name, size):
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    model = small_model(name, 'mmseg')
    model.data_preprocessor.size = size
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    sample.gt_sem_seg = PixelData(data=torch.full((1, *size), 255))
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    parts = assert_finite(model, dict(inputs=[image, image], data_samples=[sample, sample]))
    assert parts['loss'] == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
