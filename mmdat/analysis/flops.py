"""Parameters and multiply-adds of models, by fvcore's rules and without computing anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import FlopCounterMode

from ..layers import DeformableAttention, DeformableDETRAttention, NeighborhoodAttention


@dataclass(frozen=True)
class Complexity:
    """What a model, or a part of it, costs: `flops` multiply-adds for one image, and `parameters`."""

    flops: int
    parameters: int


def count_complexity(cfg: Config, shape: tuple[int, int] | None = None) -> dict[str, Complexity]:
    """Counts the model of a config.

    One multiply-add is one FLOP. Linear layers, convolutions, matrix products, norms, interpolation and
    pooling count as in fvcore and `mmengine.analysis.FlopAnalyzer`; bilinear sampling, of features and of
    position biases, is 4 an element, and softmax, activations and sums are free. Tensors have shapes but no
    values (PyTorch's `meta` device), where deformable attention runs its reference implementation: the count
    is that of the paper's equations, whatever backend serves later. Two-stage detectors are counted with
    1000 RoIs and 100 masks.

    Args:
        cfg: Config of mmdet, mmseg or mmpretrain, told by `default_scope`.
        shape: Height and width of the image in pixels, see `default_shape`.

    Returns:
        `'model'`, all of it, and `'backbone'`. Auxiliary heads have parameters, but do not run.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build({**cfg.model, 'train_cfg': None})
    inference = _Inference(model).eval().to('meta')
    image = torch.empty(1, 3, *(shape or default_shape(cfg)), device='meta')
    neighbors = 0

    def count_neighbors(module: NeighborhoodAttention, args: tuple[Tensor]):
        nonlocal neighbors
        neighbors += 2 * args[0].numel() * module.kernel_size**2  # two products for each neighbour

    for module in inference.modules():
        if isinstance(module, NeighborhoodAttention):
            module.register_forward_pre_hook(count_neighbors)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        inference(image)
    counts = counter.get_flop_counts()
    root = type(inference).__name__
    uncounted = sum(
        counts[f'{root}.{name}'][op]
        for name, module in inference.named_modules()
        for op in _uncounted(module)
    )
    return {
        name: Complexity(
            (sum(counts[scope].values()) - uncounted) // 2 + neighbors,
            sum(p.numel() for p in part.parameters()),
        )
        for name, scope, part in (
            ('backbone', f'{root}.model.backbone', model.backbone),
            ('model', root, model),
        )
    }


def default_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of the images for which the paper counts a model (captions of Tables 3 to 5).

    800 x 1280 for detectors, 512 x 2048 for segmentors, and what the test pipeline crops, or else resizes to,
    for classifiers.
    """
    if cfg.default_scope != 'mmpretrain':
        return {'mmdet': (800, 1280), 'mmseg': (512, 2048)}[cfg.default_scope]
    steps = {step.type: step for step in cfg.test_pipeline}
    return (steps['CenterCrop'].crop_size,) * 2 if 'CenterCrop' in steps else steps['Resize'].scale


class _Inference(nn.Module):
    """What a model computes for an image, without anything that depends on values, such as proposals."""

    num_rois, num_masks = 1000, 100

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> None:
        if not hasattr(self.model, 'roi_head'):
            self.model(image, mode='tensor')
            return
        maps = self.model.extract_feat(image)
        self.model.rpn_head(maps)
        roi_head = self.model.roi_head
        self._run(roi_head.bbox_head, roi_head.bbox_roi_extractor, maps, self.num_rois)
        if roi_head.with_mask:
            self._run(roi_head.mask_head, roi_head.mask_roi_extractor, maps, self.num_masks)

    def _run(self, heads: nn.Module, extractors: nn.Module, maps: Sequence[Tensor], number: int) -> None:
        """Runs a head, or all stages of a cascade, on `number` regions."""
        is_cascade = isinstance(heads, nn.ModuleList)
        for head, extractor in zip(heads, extractors) if is_cascade else [(heads, extractors)]:
            size = extractor.roi_layers[0].output_size
            head(maps[0].new_empty(number, maps[0].shape[1], *size))


def _uncounted(module: nn.Module) -> list[OpOverloadPacket]:
    """Operators of a module that do not count as they run."""
    if isinstance(module, DeformableAttention) and module.offset_range == 0:
        return [_ATEN.grid_sampler_2d]  # of points that never move (Table 6, rows 1 and 2)
    if isinstance(module, DeformableDETRAttention):
        return [_ATEN.bmm]  # the weighted sum of points, in the original a product by elements (Table 8)
    if isinstance(module, NeighborhoodAttention):
        return [_ATEN.bmm]  # of tiles with whole regions; the neighbours alone are counted instead
    return []


def _per_input(flops: int):
    return lambda shape, *_, **__: 2 * flops * prod(shape)


def _per_output(flops: int):
    return lambda *_, out_shape, **__: 2 * flops * prod(out_shape)


# What PyTorch's counter lacks, by fvcore's rules. PyTorch takes a multiply-add for two FLOPs, so these are
# doubled too, and the sum is halved.
_ATEN = torch.ops.aten
_FORMULAS = {
    _ATEN.native_layer_norm: _per_input(5),
    _ATEN.native_group_norm: _per_input(5),
    _ATEN.native_batch_norm: _per_input(2),
    _ATEN._adaptive_avg_pool2d: _per_input(1),
    _ATEN.mean: _per_input(1),  # what adaptive pooling to one pixel becomes
    _ATEN.upsample_nearest2d: _per_output(1),
    _ATEN.upsample_bilinear2d: _per_output(4),
    _ATEN.grid_sampler_2d: _per_output(4),
}
# The counter takes apart what it does not find by overload, and then looks up the operator.
_FORMULAS |= {getattr(op, name): formula for op, formula in _FORMULAS.items() for name in op.overloads()}
