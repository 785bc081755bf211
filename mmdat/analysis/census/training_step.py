"""The census of a whole training step of a config: model, losses, gradients, optimiser."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .canvases import batch_size, usual_canvas
from .counting import Report, autocast, fake
from .extensions import follow_mmcv, follow_own_operators
from .fake_cuda import DEVICE, prepare_process
from .host_reads import ReadingCensus
from .kernels import tensors
from .processes import in_own_process

BOXES = 20  # in each image


def count_training_step(
    cfg: Config,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    amp: torch.dtype | None = torch.float16,
    boxes: int = BOXES,
) -> Report:
    """The census of a training step of a config on a GPU that is not there.

    Backbone, neck, heads and losses are computed as they are, with their gradients. What depends on numbers
    in the losses is assumed, see `host_reads.py`.

    The peak counts weights, gradients, the optimiser's state, and the buckets in which
    DistributedDataParallel collects gradients; what several processes say to each other is not counted.

    Args:
        cfg: Config of mmdet, mmseg or mmpretrain.
        size: Height and width of the batch in pixels, see `usual_canvas`.
        batch: Number of images, by default that of the config.
        amp: Dtype of autocast, or `None` for none.
        boxes: Objects in each image, for detectors.

    Returns:
        With the parts `'backbone'`, `'neck and heads'`, `'backward of neck and heads'`, `'backward of the
        backbone'` and `'update'`.
    """
    return in_own_process(
        count_in_this_process, cfg, size or usual_canvas(cfg), batch or batch_size(cfg), amp, boxes
    )


def count_in_this_process(
    cfg: Config,
    size: tuple[int, int],
    batch: int,
    amp: torch.dtype | None,
    boxes: int,
    with_update: bool = True,
) -> Report:
    """The same, in a process in which nothing but censuses is done; up to the update if that is not wanted.

    The update is never the peak: what losses and gradients needed is free by then.
    """
    prepare_process()
    logging.disable(logging.INFO)  # MMEngine says what it decided for each weight
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build({**cfg.model, 'init_cfg': None})
    with DefaultScope.overwrite_default_scope(cfg.default_scope), ReadingCensus() as census:
        follow_own_operators(census)
        follow_mmcv(census)
        with census.part('weights'):
            model = fake(model).train()
        with census.part('optimiser state'):
            optimizer = build_optim_wrapper(model, _without_amp(cfg.optim_wrapper)).optimizer
            _fill_state(optimizer)
        with census.part('buckets'):
            size_of_gradients = sum(p.numel() for p in model.parameters() if p.requires_grad)
            _buckets = torch.empty(size_of_gradients, device=DEVICE)
        with census.part('input'):
            images = torch.empty(batch, 3, *size, device=DEVICE)
            samples = [_SAMPLES[cfg.default_scope](cfg, size, boxes) for _ in range(batch)]
        with census.part('constants'), torch.no_grad(), autocast(amp):
            model.backbone(images)  # which keeps what depends on sizes alone
        census.forget_peak()
        with census.part('neck and heads'), autocast(amp), _as_part(census, model.backbone):
            with patch('torch.cuda.is_available', return_value=True):  # asks the focal loss
                losses = model.loss(images, samples)
            loss, _ = model.parse_losses(losses)
            del losses
        with census.part('backward of neck and heads'):
            loss.backward()
        if with_update:
            with census.part('update'):
                optimizer.step()
    for name in ('weights', 'optimiser state', 'buckets', 'input', 'constants'):
        census.report.parts.pop(name)
    return census.report


@contextmanager
def _as_part(census: ReadingCensus, backbone: nn.Module) -> Iterator[None]:
    """Counts a backbone in a part of its own, and what follows the gradient of its last map in another."""
    forward = backbone.forward

    def counted(*args):
        with census.part('backbone'):
            outs = forward(*args)
        last = tensors(outs)[-1]
        last.register_hook(lambda grad: census.begin('backward of the backbone'))
        return outs

    backbone.forward = counted
    yield
    backbone.forward = forward


def _without_amp(cfg: dict) -> dict:
    return {**cfg, 'type': 'OptimWrapper'}


def _fill_state(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's state from the second step on. A fused update has the number of steps on the device."""
    for group in optimizer.param_groups:
        group['foreach'] = not group['fused']
        for parameter in group['params']:
            optimizer.state[parameter] = dict(
                step=torch.zeros((), device=DEVICE if group['fused'] else None),
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )


def _detection_sample(cfg: Config, size: tuple[int, int], boxes: int):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    instances = InstanceData(
        bboxes=torch.empty(boxes, 4, device=DEVICE),
        labels=torch.empty(boxes, dtype=torch.int64, device=DEVICE),
    )
    if 'mask' in str(cfg.model.type).lower() or cfg.model.get('roi_head', {}).get('mask_head'):
        instances.masks = BitmapMasks(np.zeros((boxes, *size), np.uint8), *size)
    meta = dict(img_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    ignored = InstanceData(
        bboxes=torch.empty(0, 4, device=DEVICE), labels=torch.empty(0, dtype=torch.int64, device=DEVICE)
    )
    return DetDataSample(metainfo=meta, gt_instances=instances, ignored_instances=ignored)


def _segmentation_sample(cfg: Config, size: tuple[int, int], boxes: int):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.empty(1, *size, dtype=torch.int64, device=DEVICE)
    meta = dict(img_shape=size, pad_shape=size, ori_shape=size)
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))


def _classification_sample(cfg: Config, size: tuple[int, int], boxes: int):
    from mmpretrain.structures import DataSample

    sample = DataSample()
    sample.set_gt_score(torch.empty(cfg.model.head.num_classes, device=DEVICE))  # of mixed images
    return sample


_SAMPLES = {
    'mmdet': _detection_sample,
    'mmseg': _segmentation_sample,
    'mmpretrain': _classification_sample,
}
