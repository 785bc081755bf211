"""Operations that runtimes lack or compute wrong, and what stands for them in an exported graph."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops.deformable.gathers import sample_by_gathers


@contextmanager
def substituted(grid_sample: bool = False) -> Iterator[None]:
    """Inside, PyTorch's bilinear sampling is computed by gathers, and its adaptive pooling by products.

    TensorRT miscompiles `GridSample`. Exporters refuse adaptive pooling to sizes that do not divide the map.

    Args:
        grid_sample: Keep PyTorch's bilinear sampling.
    """
    table = {F.adaptive_avg_pool2d: adaptive_avg_pool2d, Tensor.clamp: _clamp}
    if not grid_sample:
        table |= {F.grid_sample: _grid_sample, torch.grid_sampler_2d: _grid_sampler_2d}
    with _Substitution(table):
        yield


@contextmanager
def upsampling_by_factor(model: nn.Module) -> Iterator[None]:
    """Inside, mmseg's up-sampling by a factor turns no size into a number, a constant of a graph."""
    found = [
        module
        for module in model.modules()
        if type(module).__name__ == 'Upsample' and type(module) is not nn.Upsample and not module.size
    ]
    for module in found:
        module.forward = partial(_upsample, module)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _upsample(module: nn.Module, x: Tensor) -> Tensor:
    return F.interpolate(
        x, scale_factor=module.scale_factor, mode=module.mode, align_corners=module.align_corners
    )


class _Substitution(TorchFunctionMode):
    def __init__(self, table: Mapping):
        super().__init__()
        self.table = table

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.table.get(func, func)(*args, **(kwargs or {}))


def _grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = 'bilinear',
    padding_mode: str = 'zeros',
    align_corners: bool | None = None,
) -> Tensor:
    if (mode, padding_mode, align_corners) != ('bilinear', 'zeros', True):
        return F.grid_sample(input, grid, mode, padding_mode, align_corners)
    return sample_by_gathers(input, grid)


def _grid_sampler_2d(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    if (interpolation_mode, padding_mode, align_corners) != (0, 0, True):
        return torch.grid_sampler_2d(input, grid, interpolation_mode, padding_mode, align_corners)
    return sample_by_gathers(input, grid)


def _clamp(input: Tensor, min=None, max=None) -> Tensor:
    if min is None or max is None:
        return input.clamp(min, max)
    return input.clamp(min=min).clamp(max=max)  # without shape inference two bounds at once lose the dtype


def adaptive_avg_pool2d(input: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """`F.adaptive_avg_pool2d` as two products with small matrices, `(..., H, W)` to `(..., H_out, W_out)`."""
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    height, width = input.shape[-2:]
    left = _pooling_matrix(height, rows, input)
    return left @ input @ _pooling_matrix(width, columns, input).transpose(0, 1)


def _pooling_matrix(size: int, parts: int | None, like: Tensor) -> Tensor:
    """Weights of the means over the parts of an axis, which overlap where they do not divide it."""
    part = torch.arange(size if parts is None else parts, device=like.device)[:, None]
    if parts is None:
        parts = size
    start, end = part * size // parts, ((part + 1) * size + parts - 1) // parts
    pixel = torch.arange(size, device=like.device)
    inside = ((pixel >= start) & (pixel < end)).to(like.dtype)
    return inside / (end - start)
