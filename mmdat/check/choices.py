"""Which backend serves what on a device, and why."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..benchmarks.ops import GPU_SHAPES, HEAD_DIMS, SHAPES, Shape
from ..ops import (
    explain,
    explain_mlp,
    explain_neighborhood_attention,
    explain_sampling,
    explain_window_attention,
)
from .layers import mlp_inputs, neighborhood_inputs, sampling_inputs, window_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def describe_choices(device: torch.device) -> list[tuple[str, str, str, str]]:
    """Rows of what is computed, its sizes, its dtypes, and what `explain` says."""
    rows = []
    for shape in SHAPES if device.type == 'cpu' else GPU_SHAPES:
        said = {dtype: explain(*_inputs(shape, device, dtype), shape.queries) for dtype in DTYPES}
        rows += [('deformable attention', str(shape), *cells) for cells in _by_dtypes(said)]
    for what, inputs, explain_layer in (
        ('attention in windows', window_inputs, explain_window_attention),
        ('attention in neighbourhoods', neighborhood_inputs, explain_neighborhood_attention),
        ('MLP', mlp_inputs, explain_mlp),
        ('sampling of keys', sampling_inputs, explain_sampling),
    ):
        size = ' x '.join(map(str, inputs(torch.float32, 'meta')[0].shape))
        said = {dtype: explain_layer(*inputs(dtype, device)) for dtype in DTYPES}
        rows += [(what, size, *cells) for cells in _by_dtypes(said)]
    return rows


def _inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Any numbers, because `explain` looks at none, in the dtypes that layers have under autocast."""
    num_queries, num_keys = prod(shape.queries), prod(shape.keys)
    rows = (torch.empty(shape.batch, shape.heads, n, HEAD_DIMS, dtype=dtype, device=device)
            for n in (num_queries, num_keys, num_keys))  # fmt: skip
    table = torch.empty(shape.heads, *[2 * shape.nominal_side - 1] * 2, device=device)
    return [*rows, table, torch.empty(shape.batch, shape.groups, num_keys, 2, device=device)]


def _by_dtypes(said: Mapping[torch.dtype, str]) -> list[tuple[str, str]]:
    """What is said, after the dtypes for which it is."""
    dtypes = {}
    for dtype, text in said.items():
        dtypes.setdefault(text, []).append(str(dtype).removeprefix('torch.'))
    return [(', '.join(names), text) for text, names in dtypes.items()]
