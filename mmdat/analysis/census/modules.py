"""The census of a module, and the kinds of blocks of a backbone."""

from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...backbones.dat import DAT
from .counting import Report, autocast, fake
from .extensions import follow_own_operators
from .fake_cuda import DEVICE, prepare_process
from .host_reads import ReadingCensus
from .kernels import tensors
from .processes import in_own_process


def count_module(
    module: nn.Module, shape: tuple[int, ...], amp: torch.dtype | None = None, backward: bool = True
) -> Report:
    """The census of a module on an input of float32 that has a gradient.

    The module may live anywhere; what is counted is a copy of it on the fake device, in its second step: what
    it keeps from the first, because it depends on sizes alone, is there already.

    Args:
        module: Takes one tensor, returns one or several.
        shape: Of the input.
        amp: Dtype of autocast, or `None` for none.
        backward: Whether to count a training step, or else a forward pass.

    Returns:
        With the parts `'forward'` and `'backward'`. The peak counts weights, gradients and the input too.
    """
    return in_own_process(_count_module, deepcopy(module).to('meta'), shape, amp, backward)


def _count_module(module, shape, amp, backward) -> Report:
    prepare_process()
    with ReadingCensus() as census:
        follow_own_operators(census)
        with census.part('weights'):
            module = fake(module).train(backward)
        with census.part('input'):
            x = torch.empty(shape, device=DEVICE, requires_grad=backward)
        with census.part('constants'), torch.no_grad(), autocast(amp):
            module(x)
        census.forget_peak()
        with torch.set_grad_enabled(backward):
            with census.part('forward'), autocast(amp):
                outs = module(x)
            if backward:
                with census.part('gradients of the output'):
                    outs = [out for out in tensors(outs) if out.requires_grad]
                    grads = [torch.empty_like(out) for out in outs]
                with census.part('backward'):
                    torch.autograd.backward(outs, grads)
    for name in ('weights', 'input', 'constants'):
        census.report.parts.pop(name)
    return census.report


class Kind(NamedTuple):
    """Blocks of a stage with the same attention.

    Attributes:
        name: Of the stage from 1 on, and of the attention: `'3 D'`, see `DAT`.
        number: How many there are.
        block: One of them.
        shape: Of their map, `(B, H, W, C)`.
    """

    name: str
    number: int
    block: nn.Module
    shape: tuple[int, int, int, int]


def build_backbone(cfg: Config) -> nn.Module:
    """The backbone of a config, without numbers in its weights."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build({**cfg.model.backbone, 'init_cfg': None})


def kinds(model: DAT, size: tuple[int, int], batch: int) -> Iterator[Kind]:
    """The kinds of blocks of a backbone, in their order."""
    for i, (stage, letters) in enumerate(zip(model.stages, model.identity['blocks'])):
        height, width = (-(-side // (4 * 2**i)) for side in size)
        for letter in dict.fromkeys(letters):
            block = stage.blocks[letters.rindex(letter)]  # the last, which drops paths
            shape = batch, height, width, block.norm1.normalized_shape[0]
            yield Kind(f'{i + 1} {letter}', letters.count(letter), block, shape)
