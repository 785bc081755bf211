"""The census of a backbone and of its blocks, each kind of block by itself."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..backbones.dat import DAT
from .census import GIB, MIB, Census, Counts, Report, autocast, fake
from .cuda_kernels import tensors
from .extensions import follow_own_operators
from .fake_cuda import DEVICE, in_own_process, prepare_process
from .tables import markdown_table


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


def blocks_to_markdown(model: DAT, size: tuple[int, int], batch: int, amp: torch.dtype | None = None) -> str:
    """A row for each kind of block, and one for the backbone: kernels, bytes, waits, memory.

    `kept` is what a block leaves in memory for its backward pass, its output and casts of weights included.
    """
    rows = []
    for kind in kinds(model, size, batch):
        rows.append((kind.name, kind.number, *_cells(count_module(kind.block, kind.shape, amp), MIB)))
    whole = count_module(model, (batch, 3, *size), amp)
    rows.append(('backbone, GiB', 1, *_cells(whole, GIB)))
    columns = (
        f'{batch} x {size[0]} x {size[1]}, {name_of(amp)}',
        'blocks',
        'kernels forward',
        'backward',
        'MiB moved forward',
        'backward',
        'MiB kept',
        'MiB at the peak',
        'waits and copies',
    )
    return markdown_table(columns, rows)


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
    return in_own_process(_count_module, module, shape, amp, backward)


def _count_module(module, shape, amp, backward) -> Report:
    prepare_process()
    with Census() as census:
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


def name_of(amp: torch.dtype | None) -> str:
    return 'float32' if amp is None else f'AMP {str(amp).removeprefix("torch.")}'


def _cells(report: Report, unit: int) -> list[str]:
    forward, backward = report.parts['forward'], report.parts['backward']
    kept = report.kept['gradients of the output'] - report.kept['forward']
    sizes = (forward.moved, backward.moved, kept, report.peak)
    digits = 0 if unit == MIB else 2
    return [
        str(forward.kernels.total()),
        str(backward.kernels.total()),
        *(f'{size / unit:.{digits}f}' for size in sizes),
        str(waits_and_copies(forward + backward)),
    ]


def waits_and_copies(counts: Counts) -> int:
    return counts.waits.total() + counts.copies.total()
