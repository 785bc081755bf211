"""Speed and memory of the backends of deformable attention."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..analysis.tables import markdown_table
from ..ops import deformable_attention
from ..ops.deformable import offset_unit, reference_points
from .timing import device_name, interleaved_timings, peak_memory

HEAD_DIMS = 32


class Shape(NamedTuple):
    """Maps of queries and keys, heads and groups, and the side of the map that the bias table is made for."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    heads: int
    groups: int
    nominal_side: int
    batch: int = 1

    def __str__(self) -> str:
        sizes = 'x'.join(map(str, self.queries)), self.keys[0] * self.keys[1], self.heads
        return '{} x {}, {}'.format(*sizes) + (f', batch {self.batch}' if self.batch > 1 else '')


# Of the last two stages of DAT-T, at 224 x 224, 800 x 1280, 512 x 2048 and 1600 x 2560 pixels.
SHAPES = (
    Shape((14, 14), (14, 14), 12, 3, 14),
    Shape((7, 7), (7, 7), 24, 6, 7),
    Shape((14, 14), (14, 14), 12, 3, 14, batch=16),
    Shape((7, 7), (7, 7), 24, 6, 7, batch=16),
    Shape((25, 40), (25, 40), 24, 6, 7),
    Shape((50, 80), (25, 40), 12, 3, 14),
    Shape((50, 80), (50, 80), 12, 3, 14),
    Shape((32, 128), (16, 64), 12, 3, 14),
    Shape((100, 160), (25, 40), 12, 3, 14),
)


def benchmark_ops(backends: list[str], shapes: tuple[Shape, ...] = SHAPES, repeats: int = 9) -> str:
    """Compares backends with the reference in float32: forward, and a training step of forward and backward.

    Args:
        backends: Names of those to compare with the reference.
        shapes: What to compute. The positions of keys have random offsets of about a cell.
        repeats: Timed calls.

    Returns:
        Markdown: medians with half the inter-quartile range, how many times as fast as the reference, and
        the peak memory of a training step beyond the inputs.
    """
    head = (
        f'{device_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32, heads of '
        f'{HEAD_DIMS} channels, medians of {repeats} with half the inter-quartile range, taking turns. '
        'Shapes are queries x keys, heads. Times are in ms, ratios say how many times as fast as the '
        'reference. Memory is the peak of a training step beyond its inputs.'
    )
    table = []
    for shape in shapes:
        contenders = {name: _calls(shape, name) for name in ('reference', *backends)}
        rows = {name: [str(shape), name] for name in contenders}
        for kind in ('forward', 'step'):
            timings = interleaved_timings({name: calls[kind] for name, calls in contenders.items()}, repeats)
            for name, timing in timings.items():
                ratio = timings['reference'].median / timing.median
                rows[name] += [f'{1e3 * timing.median:.2f} ± {1e3 * timing.spread:.2f}', f'{ratio:.2f}']
        for name, calls in contenders.items():
            rows[name].append(f'{peak_memory(calls["step"]) / 2**20:.0f} MiB')
        table += rows.values()
    columns = ('shape', 'backend', 'forward', 'ratio', 'training step', 'ratio', 'memory')
    return f'{head}\n\n{markdown_table(columns, table)}'


def random_inputs(shape: Shape) -> list[Tensor]:
    """The tensors of `deformable_attention` on the device at hand, laid out as the layer lays them out."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def rows(size: tuple[int, int]) -> Tensor:
        return normal(shape.batch, size[0] * size[1], shape.heads, HEAD_DIMS).transpose(1, 2)

    table = normal(shape.heads, *[2 * shape.nominal_side - 1] * 2) / 2
    cell = torch.tensor([2 * offset_unit(size) for size in shape.keys])
    offsets = normal(shape.batch, shape.groups, shape.keys[0] * shape.keys[1], 2).tanh() * cell
    locations = reference_points(*shape.keys).flatten(0, 1) + offsets
    inputs = rows(shape.queries), rows(shape.keys), rows(shape.keys), table, locations
    return [t.to(device).requires_grad_() for t in inputs]


def _calls(shape: Shape, backend: str) -> dict[str, Callable[[], None]]:
    inputs = random_inputs(shape)
    grad_out = torch.ones_like(inputs[0])

    @torch.no_grad()
    def forward():
        deformable_attention(*inputs, shape.queries, backend=backend)

    def step():
        out = deformable_attention(*inputs, shape.queries, backend=backend)
        torch.autograd.grad(out, inputs, grad_out)

    return {'forward': forward, 'step': step}
