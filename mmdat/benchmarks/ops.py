"""Speed and memory of the backends of deformable attention."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..analysis.tables import markdown_table
from ..ops import deformable_attention
from ..ops.deformable import (
    deformable_attention_reference,
    offset_unit,
    reference_points,
    relative_position_bias,
)
from ..ops.deformable.comparison import NAMES, clear_of_knots, relative_errors, results, truth
from ..ops.deformable.inputs import Inputs
from ..ops.ladder import REFERENCE
from .timing import Timing, device_name, in_one_line, interleaved_timings, peak_memory, timings_on

HEAD_DIMS = 32
CPU = torch.device('cpu')
SDPA = 'SDPA, no bias'
RESULTS = ('out', *NAMES)


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
# The same with what fills a GPU, and 800 x 1344 pixels, the padded canvas of COCO.
GPU_SHAPES = (
    Shape((14, 14), (14, 14), 12, 3, 14, batch=128),
    Shape((7, 7), (7, 7), 24, 6, 7, batch=128),
    Shape((25, 42), (25, 42), 24, 6, 7, batch=2),
    Shape((50, 84), (25, 42), 12, 3, 14, batch=2),
    Shape((50, 84), (50, 84), 12, 3, 14, batch=2),
    Shape((32, 128), (16, 64), 12, 3, 14, batch=2),
    Shape((100, 160), (25, 40), 12, 3, 14),
)


def benchmark_ops(backends: list[str], shapes: tuple[Shape, ...] = SHAPES, repeats: int = 9) -> str:
    """Compares backends with the reference on the CPU in float32: forward, and a training step of forward and
    backward.

    Args:
        backends: Names of those to compare with the reference.
        shapes: What to compute. The positions of keys have random offsets of about a cell.
        repeats: Timed calls.

    Returns:
        Markdown: medians with half the inter-quartile range, how many times as fast as the reference, and
        the peak memory of a training step beyond the inputs.
    """
    head = (
        f'{device_name(CPU)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32, heads '
        f'of {HEAD_DIMS} channels, medians of {repeats} with half the inter-quartile range, taking turns. '
        'Shapes are queries x keys, heads. Times are in ms, ratios say how many times as fast as the '
        'reference. Memory is the peak of a training step beyond its inputs.'
    )
    table = []
    for shape in shapes:
        contenders = {
            name: _calls(random_inputs(shape, CPU), name, shape.queries) for name in (REFERENCE, *backends)
        }
        rows = {name: [str(shape), name] for name in contenders}
        for kind in ('forward', 'step'):
            timings = interleaved_timings({name: calls[kind] for name, calls in contenders.items()}, repeats)
            for name, timing in timings.items():
                ratio = timings[REFERENCE].median / timing.median
                rows[name] += [_milliseconds(timing), f'{ratio:.2f}']
        for name, calls in contenders.items():
            rows[name].append(_mebibytes(peak_memory(calls['step'], CPU)))
        table += rows.values()
    columns = ('shape', 'backend', 'forward', 'ratio', 'training step', 'ratio', 'memory')
    return f'{head}\n\n{markdown_table(columns, table)}'


def benchmark_beside_sdpa(
    backends: Sequence[str],
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int = 20,
    compiled: bool = True,
) -> str:
    """Compares backends with the equations and with PyTorch's scaled dot-product attention.

    The latter knows no interpolated bias: without one it computes less, and shows what attention costs by
    itself; with one, it gets the bias of all pairs as a tensor that costs it nothing to make.

    Args:
        backends: Names of those to compare.
        shapes: What to compute.
        device: Where.
        dtype: Of queries, keys and values. Bias table and positions are in float32, as in the layer.
        repeats: Timed calls.
        compiled: Also compare the equations under `torch.compile`.

    Returns:
        Markdown: how near each comes to the equations in float64, then medians with half the inter-quartile
        range and memory. A backend is not timed at a shape where it is wrong or fails.
    """
    spoken = str(dtype).removeprefix('torch.')
    cold = ' by CUDA events with nothing in the L2 cache' if device.type == 'cuda' else ''
    lines = [
        f'{device_name(device)}, PyTorch {torch.__version__}, {spoken}, heads of {HEAD_DIMS} channels, '
        f'medians of {repeats}{cold} with half the inter-quartile range, taking turns. Shapes are queries x '
        'keys, heads. Times are in ms: `x faster` says how many times as fast as the equations, `of SDPA` '
        'how many times the time of scaled_dot_product_attention without a bias. Memory is the peak of a '
        'training step beyond its inputs.'
    ]
    errors, left_out = [], set()
    limit = allowed_error(dtype)
    for shape in shapes:
        for name in backends:
            try:
                found = errors_of(shape, name, device, dtype)
                said = 'right' if max(found.values()) <= limit else 'WRONG'
                cells = [f'{error:.1e}' for error in found.values()]
            except Exception as error:  # the others' figures stand without it
                said, cells = in_one_line(error), [''] * len(RESULTS)
            if said != 'right':
                left_out.add((shape, name))
            errors.append((shape, name, *cells, f'{limit:.1e}', said))
    lines += [
        '',
        'Largest errors against float64, as parts of the largest numbers, of one image and group:',
        '',
    ]
    lines += [markdown_table(('shape', 'backend', *RESULTS, 'allowed', ''), errors), '']

    table = []
    for shape in shapes:
        right = [name for name in backends if (shape, name) not in left_out]
        table += _rows_beside_sdpa(shape, right, device, dtype, repeats, compiled)
    columns = ('forward', 'x faster', 'of SDPA', 'training step', 'x faster', 'of SDPA', 'memory')
    return '\n'.join([*lines, markdown_table(('shape', 'what', *columns), table)])


def errors_of(shape: Shape, backend: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """`relative_errors` of a backend, of one image and one group of heads: the truth takes much memory."""
    one = shape._replace(batch=1, heads=shape.heads // shape.groups, groups=1)
    tensors = (t.detach() for t in random_inputs(one, device, dtype))
    inputs = clear_of_knots(Inputs(*tensors, one.queries, 'half_pixel'))
    grad_out = torch.randn(inputs.q.shape, generator=torch.Generator().manual_seed(1)).to(inputs.q)
    ours = results(partial(deformable_attention, backend=backend), inputs, grad_out)
    return relative_errors(ours, truth(inputs, grad_out))


def allowed_error(dtype: torch.dtype) -> float:
    """Of `errors_of`: what rounding explains."""
    return 8 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-4


def random_inputs(shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The tensors of `deformable_attention`, laid out as the layer lays them out.

    Args:
        shape: Their sizes.
        device: Where they lie.
        dtype: Of queries, keys and values.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def rows(size: tuple[int, int]) -> Tensor:
        return normal(shape.batch, size[0] * size[1], shape.heads, HEAD_DIMS).transpose(1, 2).to(dtype)

    table = normal(shape.heads, *[2 * shape.nominal_side - 1] * 2) / 2
    cell = torch.tensor([2 * offset_unit(size) for size in shape.keys])
    offsets = normal(shape.batch, shape.groups, shape.keys[0] * shape.keys[1], 2).tanh() * cell
    locations = reference_points(*shape.keys).flatten(0, 1) + offsets
    inputs = rows(shape.queries), rows(shape.keys), rows(shape.keys), table, locations
    return [t.to(device).requires_grad_() for t in inputs]


def _rows_beside_sdpa(
    shape: Shape,
    backends: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    compiled: bool,
) -> list[list[str]]:
    contenders = _contenders(shape, backends, device, dtype, compiled)
    rows = {name: [str(shape), name] for name in contenders}
    for name, calls in list(contenders.items()):
        try:
            calls['step']()
        except Exception as error:  # the others' figures stand without it
            said = 'out of memory' if isinstance(error, torch.OutOfMemoryError) else in_one_line(error)
            rows[name] += [said, *[''] * 6]
            del contenders[name]
    for kind in ('forward', 'step'):
        calls = {name: calls[kind] for name, calls in contenders.items()}
        timings = timings_on(device)(calls, repeats) if calls else {}
        for name, timing in timings.items():
            rows[name].append(_milliseconds(timing))
            for base, others in ((REFERENCE, False), (SDPA, True)):
                ratio = timing.median / timings[base].median if base in timings else torch.nan
                rows[name].append(f'{ratio if others else 1 / ratio:.2f}')
    for name, calls in contenders.items():
        rows[name].append(_mebibytes(peak_memory(calls['step'], device)))
    return list(rows.values())


def _contenders(
    shape: Shape, backends: Sequence[str], device: torch.device, dtype: torch.dtype, compiled: bool
) -> dict[str, 'Calls']:
    inputs = random_inputs(shape, device, dtype)
    *rows, table, locations = inputs
    contenders = {REFERENCE: _calls(inputs, REFERENCE, shape.queries)}
    if compiled:
        torch.compiler.reset()  # or the sizes of this shape become variables, because others came before
        attend = torch.compile(
            lambda *tensors: deformable_attention_reference(*tensors, shape.queries), dynamic=False
        )
        contenders[f'{REFERENCE}, compiled'] = _differentiated(attend, inputs)
    contenders[SDPA] = _differentiated(F.scaled_dot_product_attention, rows)

    def with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    try:
        with torch.no_grad():
            bias = relative_position_bias(table, locations, shape.queries).to(dtype)
        contenders['SDPA, bias given'] = _differentiated(with_bias, [*rows, bias.requires_grad_()])
    except torch.OutOfMemoryError:
        pass  # which the equations need several times, so their row tells it
    return contenders | {name: _calls(inputs, name, shape.queries) for name in backends}


Calls = dict[str, Callable[[], None]]


def _calls(inputs: Sequence[Tensor], backend: str, query_size: tuple[int, int]) -> Calls:
    return _differentiated(
        lambda *tensors: deformable_attention(*tensors, query_size, backend=backend), inputs
    )


def _differentiated(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Calls:
    """A forward pass, and a training step of forward and backward."""
    grad_out = torch.ones_like(inputs[0])

    @torch.no_grad()
    def forward():
        attend(*inputs)

    def step():
        torch.autograd.grad(attend(*inputs), inputs, grad_out)

    return {'forward': forward, 'step': step}


def _milliseconds(timing: Timing) -> str:
    return f'{1e3 * timing.median:.2f} ± {1e3 * timing.spread:.2f}'


def _mebibytes(size: int) -> str:
    return f'{size / 2**20:.0f} MiB'
