"""What each backend of deformable attention must do: the cases that `mmdat.check` and tests go through."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import DeformableAttention
from ..ops import deformable_attention
from ..ops.deformable.backends import BACKENDS
from ..ops.deformable.comparison import (
    NAMES,
    clear_of_knots,
    random_inputs,
    relative_errors,
    results,
    truth,
)
from ..ops.deformable.coordinates import Coordinates
from ..ops.deformable.inputs import Inputs
from ..ops.ladder import REFERENCE
from .environment import variable

OUT_LIMIT, GRADIENT_LIMIT = 2e-6, 1e-5  # of `relative_errors` in float32
ROUGHEST = 2e-4  # that `float32_positions` may excuse
HALF = (torch.bfloat16, torch.float16)


class Finding(NamedTuple):
    """An error that was found, and the largest that is allowed."""

    what: str
    error: float
    limit: float

    def is_fine(self) -> bool:
        return self.error <= self.limit  # which NaN is not

    def __str__(self) -> str:
        return f'{self.what}: {self.error:.1e}, {self.limit:.1e} allowed'


class NotServedError(Exception):
    """The backend cannot serve the inputs of a case; the message says why."""


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        backend: Its name.
        device: Where it computes.
        float32_positions: Whether it may round positions to float32. Then keys stand off the knots of the
            bias table, where gradients jump, and errors in float32 may be four times as large as those of
            the equations themselves in float32.
    """

    backend: str
    device: torch.device
    float32_positions: bool

    def attend(self, *args) -> Tensor:
        inputs = Inputs(*args)
        if self.backend != REFERENCE:
            reasons = BACKENDS[self.backend].not_supported_reasons(inputs)
            if reasons:
                raise NotServedError('; '.join(reasons))
        return deformable_attention(*inputs, backend=self.backend)

    def run(self, inputs: Inputs, grad_out: Tensor) -> dict[str, Tensor]:
        """Output, and gradients of the five inputs, by name."""
        return results(self.attend, self.moved(inputs), grad_out.to(self.device))

    def moved(self, inputs: Inputs) -> Inputs:
        """The inputs on its device."""
        return inputs._replace(**{name: getattr(inputs, name).to(self.device) for name in NAMES})

    def compare(self, inputs: Inputs, grad_out: Tensor, on_knots: bool = False) -> Iterator[Finding]:
        """Errors of the output and of all gradients, in float32."""
        if self.float32_positions and not on_knots:
            inputs = clear_of_knots(inputs)
        ours = self.run(inputs, grad_out)
        expected = truth(self.moved(inputs), grad_out.to(self.device))
        roughness = dict.fromkeys(expected, 0.0)
        if self.float32_positions and self.backend != REFERENCE:
            equations = Subject(REFERENCE, self.device, True)
            roughness = relative_errors(equations.run(inputs, grad_out), expected)
        for name, error in relative_errors(ours, expected).items():
            limit = OUT_LIMIT if name == 'out' else GRADIENT_LIMIT
            yield Finding(name, error, max(limit, min(4 * roughness[name], ROUGHEST)))


@dataclass(frozen=True)
class Case:
    """Something that a backend must do right; called, it returns what it found.

    Attributes:
        group: What it is about.
        name: Which case of the group.
        look: Yields the findings.
        of_equations: Whether the equations themselves must do it in their own dtype, too.
    """

    group: str
    name: str
    look: Callable[[Subject], Iterator[Finding]]
    of_equations: bool = False

    def __call__(
        self, backend: str, device: torch.device | str = 'cpu', float32_positions: bool | None = None
    ) -> list[Finding]:
        """Looks at a backend.

        Args:
            backend: Its name.
            device: Where it computes.
            float32_positions: See `Subject`; by default everywhere but on CPUs.

        Raises:
            NotServedError: If it cannot serve these inputs.
        """
        device = torch.device(device)
        if float32_positions is None:
            float32_positions = device.type != 'cpu'
        return list(self.look(Subject(backend, device, float32_positions)))

    def __str__(self) -> str:
        return f'{self.group}: {self.name}'


def _random_sizes(seed: int, coordinates: Coordinates, subject: Subject) -> Iterator[Finding]:
    draw = random.Random(seed)
    query_size = draw.randint(1, 70), draw.randint(1, 70)
    inputs, grad_out = random_inputs(
        query_size,
        num_keys=draw.randint(2, 70),
        table_size=(draw.randint(1, 70), draw.randint(2, 139)),
        batch=draw.randint(1, 2),
        groups=draw.randint(1, 3),
        heads_of_a_group=draw.randint(1, 2),
        head_dims=draw.choice([32, draw.randint(1, 70)]),
        coordinates=coordinates,
    )
    beyond_the_table = inputs.sampling_locations[:, :, ::7]
    beyond_the_table *= draw.choice([3, 1000])
    yield from subject.compare(inputs, grad_out)


def _sizes(settings: dict, subject: Subject) -> Iterator[Finding]:
    yield from subject.compare(*random_inputs(**settings))


def _half_precision(settings: dict, dtype: torch.dtype, subject: Subject) -> Iterator[Finding]:
    """The output against that of inputs that are not rounded, gradients against those of rounded inputs."""
    exact, grad_out = random_inputs(**settings, dtype=torch.float64)
    if subject.float32_positions:
        exact = clear_of_knots(exact)
    # positions need more digits, so the module computes them in float32
    rounded = (t.to(dtype) for t in exact.tensors()[:4])
    inputs = Inputs(*rounded, exact.sampling_locations.float(), exact.query_size, exact.coordinates)
    ours = subject.run(inputs, grad_out.to(dtype))
    for name, tensor in zip(('out', *NAMES), (inputs.v, *inputs.tensors())):
        yield Finding(f'dtype of {name}', float(ours[name].dtype != tensor.dtype), 0)
    expected = truth(subject.moved(inputs), grad_out.to(subject.device, dtype))
    expected['out'] = truth(subject.moved(exact), grad_out.to(subject.device))['out']
    for name, error in relative_errors(ours, expected).items():
        yield Finding(name, error, 8 * torch.finfo(dtype).eps)


def _on_knots(
    query_size: tuple[int, int],
    coordinates: Coordinates,
    table_size: tuple[int, int],
    head_dims: int,
    subject: Subject,
) -> Iterator[Finding]:
    """At a knot the gradient of positions jumps, so here all coordinates are multiples of powers of two,
    which are exact in float32."""
    inputs, grad_out = random_inputs(
        query_size, num_keys=45, table_size=table_size, head_dims=head_dims, coordinates=coordinates
    )
    steps = torch.arange(45) - 22
    positions = torch.stack([steps / 16, steps.roll(11) / 8], dim=-1)  # the map ends at 1, the table at 3
    locations = torch.stack([positions, positions.flip(0)]).expand(2, 2, 45, 2)
    yield from subject.compare(inputs._replace(sampling_locations=locations), grad_out, on_knots=True)


def _without_effect(
    num_keys: int, table_size: tuple[int, int], head_dims: int, subject: Subject
) -> Iterator[Finding]:
    """One key gets all attention whatever its bias, and a table of one entry favours none: no gradients."""
    inputs, grad_out = random_inputs(num_keys=num_keys, table_size=table_size, head_dims=head_dims)
    ours = subject.run(inputs, grad_out)
    if num_keys == 1:
        yield _close('out', ours['out'], inputs.v.expand_as(ours['out']), 1e-5, 1.3e-6)
        yield _close('v', ours['v'], grad_out.sum(2, keepdim=True), 1e-5, 1.3e-6)
    for name in ('bias_table', 'sampling_locations'):
        yield _close(name, ours[name], torch.zeros_like(ours[name]), 2e-5 * (head_dims / 5) ** 0.5)


def _no_images(head_dims: int, subject: Subject) -> Iterator[Finding]:
    inputs, grad_out = random_inputs(batch=1, head_dims=head_dims)
    empty = {name: getattr(inputs, name)[:0] for name in NAMES if name != 'bias_table'}
    ours = subject.run(inputs._replace(**empty), grad_out[:0])
    yield Finding('shape', float(ours['out'].shape != empty['q'].shape), 0)
    yield Finding('bias_table', ours['bias_table'].abs().max().item(), 0)


def _huge_logits(size: float, head_dims: int, subject: Subject) -> Iterator[Finding]:
    inputs, grad_out = random_inputs(num_keys=40, head_dims=head_dims)
    q, k, v, _, _ = (t.double() for t in inputs.tensors())
    ours = subject.run(inputs._replace(q=size * inputs.q), grad_out)
    for name, tensor in ours.items():
        yield Finding(f'{name} is not finite', float(not tensor.isfinite().all()), 0)
    largest, second = (q @ k.mT).topk(2).values.unbind(-1)
    clear = (largest - second) / largest.abs() > 1e-3  # rounding of other logits decides nothing here
    yield Finding('draws', 1 - clear.double().mean().item(), 0.1)
    expected = v.gather(2, (q @ k.mT).argmax(-1, keepdim=True).expand_as(q))
    yield _close('out', ours['out'].cpu().double()[clear], expected[clear], 1e-5)


def _nan_position(head_dims: int, subject: Subject) -> Iterator[Finding]:
    """It spoils its group, and no more."""
    inputs, grad_out = random_inputs(head_dims=head_dims)
    inputs.sampling_locations[1, 0, 3, 1] = torch.nan
    ours = subject.run(inputs, grad_out)
    spoiled = ours['out'].isnan()
    yield Finding('numbers in its group', float(not spoiled[1, :2].all()), 0)
    yield Finding('gradients in its group', float(not ours['q'][1, :2].isnan().all()), 0)
    yield Finding('NaN in the other image', float(spoiled[0].any()), 0)
    yield Finding('NaN in the other group', float(spoiled[1, 2:].any()), 0)


LAYOUTS = {
    'contiguous': Tensor.contiguous,
    'columns first': lambda t: t.mT.contiguous().mT,
    'every second': lambda t: torch.stack([t, t], -1)[..., 0],
    'broadcast': lambda t: t[:1].expand(t.shape),
}


def _layout(layout: str, head_dims: int, subject: Subject) -> Iterator[Finding]:
    inputs, grad_out = random_inputs(head_dims=head_dims)
    laid_out = LAYOUTS[layout]
    # on the device first, because copies may come out in another layout
    inputs, grad_out = subject.moved(inputs), grad_out.to(subject.device)
    inputs = inputs._replace(**{name: laid_out(getattr(inputs, name)) for name in NAMES})
    usual = {name: _usual(getattr(inputs, name)) for name in NAMES}
    ours = subject.run(inputs, laid_out(grad_out))
    expected = subject.run(inputs._replace(**usual), _usual(laid_out(grad_out)))
    yield Finding('layout of the output', float(not ours['out'].transpose(1, 2).is_contiguous()), 0)
    for name in ours:
        yield _close(name, ours[name], expected[name], 1e-6, 1e-5)


def _usual(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _autocast(head_dims: int, subject: Subject) -> Iterator[Finding]:
    """It does not lower the precision inside."""
    inputs, grad_out = random_inputs(head_dims=head_dims)
    expected = subject.run(inputs, grad_out)
    with torch.autocast(subject.device.type, dtype=torch.bfloat16):
        ours = subject.run(inputs, grad_out)
    for name in ours:
        yield _close(name, ours[name], expected[name], 0)


def _two_calls(subject: Subject) -> Iterator[Finding]:
    """They are equal bit for bit."""
    inputs, grad_out = random_inputs((23, 31), 150, (13, 27), head_dims=32)
    first, second = (subject.run(inputs, grad_out) for _ in range(2))
    for name in first:
        yield Finding(name, float(not first[name].equal(second[name])), 0)


def _compiled_layer(compiler: str, subject: Subject) -> Iterator[Finding]:
    """A layer under `torch.compile`, against the same without."""
    with torch.random.fork_rng(devices=[]), variable('MMDAT_BACKEND', subject.backend):
        torch.manual_seed(0)
        layer = DeformableAttention(64, num_heads=2, offset_groups=2, map_size=(8, 8), key_stride=2)
        nn.init.normal_(layer.position_bias_table)
        x = torch.randn(2, 8, 10, 64)
        layer, x = layer.to(subject.device), x.to(subject.device)
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend=compiler)
        names = ['out', 'x', *dict(layer.named_parameters())]
        for name, ours, expected in zip(
            names, _layer_results(layer, compiled, x), _layer_results(layer, layer, x)
        ):
            yield _close(name, ours, expected, 1e-4, 1e-5)


def _captured(subject: Subject) -> Iterator[Finding]:
    """A CUDA graph of forward and backward gives the same bits when it is replayed."""
    inputs, grad_out = random_inputs((14, 14), 49, (27, 27), head_dims=32)
    inputs, grad_out = subject.moved(inputs), grad_out.to(subject.device)
    expected = subject.run(inputs, grad_out)
    with torch.cuda.device(subject.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # as PyTorch asks for
            subject.run(inputs, grad_out)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ours = subject.run(inputs, grad_out)
        for tensor in ours.values():
            tensor.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
    for name in ours:
        yield _close(name, ours[name], expected[name], 0)


def _layer_results(layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    out = forward(x)
    return out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])


def _close(what: str, ours: Tensor, expected: Tensor, atol: float, rtol: float = 0) -> Finding:
    """The largest difference beyond a part of what is expected."""
    ours, expected = ours.detach().cpu().double(), expected.detach().cpu().double()
    return Finding(what, ((ours - expected).abs() - rtol * expected.abs()).max().item(), atol)


BOTH_COORDINATES = ('half_pixel', 'corners')
# 5 is no whole vector of any machine; fused kernels may want 16 at least
BOTH_HEADS = (5, 32)
# Those of DAT's stages with 3 heads instead of 12 and 24, then what no tile divides.
MODEL_SIZES = {
    'stage 3 at 224': dict(
        query_size=(14, 14), num_keys=196, table_size=(27, 27), groups=3, heads_of_a_group=1
    ),
    'stage 4 at 224': dict(query_size=(7, 7), num_keys=49, table_size=(13, 13), groups=1, heads_of_a_group=3),
    'stage 3 at 336 x 200': dict(
        query_size=(21, 13), num_keys=77, table_size=(27, 27), batch=1, coordinates='corners'
    ),
    'stage 3 at 384, base': dict(query_size=(24, 24), num_keys=576, table_size=(47, 47), batch=1, groups=1),
}
AWKWARD_SIZES = {
    'one query': dict(query_size=(1, 1)),
    'one column': dict(query_size=(37, 1), coordinates='corners'),
    'one row, many keys': dict(query_size=(1, 65), num_keys=257),
    'a table of one row': dict(table_size=(1, 27), coordinates='corners'),
    'a table of two by two': dict(table_size=(2, 2)),
    'the largest table of DAT': dict(table_size=(111, 111), num_keys=33),
}
HEADS = (16, 32, 64, 128)

CASES = (
    *(
        Case('random sizes', f'{seed}, {coordinates}', partial(_random_sizes, seed, coordinates))
        for seed in range(16)
        for coordinates in BOTH_COORDINATES
    ),
    *(
        # some make the CPU's kernel use vectors of two pieces, whether vectors have 4, 8 or 16 lanes
        Case(
            'narrow maps',
            f'{height} x {width}',
            partial(
                _sizes,
                dict(query_size=(height, width), num_keys=40, table_size=(27, 27), head_dims=32),
            ),
        )
        for height, width in [(3, 1), (5, 3), (7, 7), (13, 10), (3, 20), (5, 40)]
    ),
    *(
        Case('sizes of the models', name, partial(_sizes, dict(head_dims=32) | settings))
        for name, settings in MODEL_SIZES.items()
    ),
    *(
        Case(
            'awkward sizes',
            f'{name}, heads of {head_dims}',
            partial(_sizes, dict(head_dims=head_dims) | settings),
        )
        for name, settings in AWKWARD_SIZES.items()
        for head_dims in BOTH_HEADS
    ),
    *(
        Case(
            'sizes of heads',
            str(head_dims),
            partial(_sizes, dict(query_size=(9, 11), num_keys=70, head_dims=head_dims)),
        )
        for head_dims in HEADS
    ),
    *(
        Case(
            str(dtype).removeprefix('torch.'),
            name,
            partial(_half_precision, settings, dtype),
            of_equations=True,
        )
        for dtype in HALF
        for name, settings in {
            'small': dict(),
            'small, heads of 32': dict(head_dims=32),
            **{name: dict(head_dims=32) | settings for name, settings in MODEL_SIZES.items()},
        }.items()
    ),
    *(
        Case(
            'positions on knots',
            f'{query_size}, {coordinates}, table {table_size}, heads of {head_dims}',
            partial(_on_knots, query_size, coordinates, table_size, head_dims),
        )
        for query_size, coordinates in [
            ((8, 16), 'half_pixel'),
            ((1, 64), 'half_pixel'),
            ((9, 17), 'corners'),
            ((33, 1), 'corners'),
        ]
        for table_size in [(17, 9), (9, 33), (1, 5), (5, 1), (2, 3)]
        for head_dims in BOTH_HEADS
    ),
    *(
        case
        for head_dims in BOTH_HEADS
        for case in (
            *(
                Case(
                    'bias without effect',
                    f'{num_keys} keys, table {table_size}, heads of {head_dims}',
                    partial(_without_effect, num_keys, table_size, head_dims),
                )
                for num_keys, table_size in [(1, (7, 9)), (9, (1, 1))]
            ),
            Case('no images', f'heads of {head_dims}', partial(_no_images, head_dims), of_equations=True),
            *(
                Case(
                    'huge logits',
                    f'{size:.0e}, heads of {head_dims}',
                    partial(_huge_logits, size, head_dims),
                    of_equations=True,
                )
                for size in (1e4, 1e8, 1e30)
            ),
            Case('a position that is NaN', f'heads of {head_dims}', partial(_nan_position, head_dims)),
            *(
                Case('layouts', f'{layout}, heads of {head_dims}', partial(_layout, layout, head_dims))
                for layout in LAYOUTS
            ),
            Case('autocast', f'heads of {head_dims}', partial(_autocast, head_dims)),
        )
    ),
    Case('two calls', 'bit for bit', _two_calls),
)
COMPILED = {
    compiler: Case('torch.compile', compiler, partial(_compiled_layer, compiler), of_equations=True)
    for compiler in ('aot_eager', 'inductor')
}
# For backends of GPUs.
CAPTURED = Case('CUDA graphs', 'bit for bit', _captured)
