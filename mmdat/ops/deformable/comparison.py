"""How near an implementation of deformable attention comes to the equations in float64.

Fused kernels check themselves with this on first use; tests and `mmdat.check` compare all backends with it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .coordinates import Coordinates, query_points
from .inputs import Inputs
from .reference import deformable_attention_reference

# More keys and queries than a tile has, and no whole numbers of tiles; a table of more knots than one has.
SHAPES = (
    dict(query_size=(9, 13), num_keys=70, table_size=(27, 27), head_dims=32),
    dict(
        query_size=(20, 7), num_keys=131, table_size=(33, 111), head_dims=32, coordinates='corners', batch=1
    ),
)
NAMES = ('q', 'k', 'v', 'bias_table', 'sampling_locations')


def random_inputs(
    query_size: tuple[int, int] = (5, 6),
    num_keys: int = 9,
    table_size: tuple[int, int] = (7, 9),
    batch: int = 2,
    groups: int = 2,
    heads_of_a_group: int = 2,
    head_dims: int = 5,
    coordinates: Coordinates = 'half_pixel',
    dtype: torch.dtype = torch.float32,
) -> tuple[Inputs, Tensor]:
    """Inputs on the CPU, laid out as the layer lays them out, and a gradient of their output.

    The same in each call: PyTorch's random numbers play no part. Some keys lie beyond the map, and some
    displacements beyond the bias table.
    """
    generator = torch.Generator('cpu').manual_seed(0)
    heads = groups * heads_of_a_group
    settings = dict(generator=generator, dtype=dtype, device='cpu')

    def rows(length: int) -> Tensor:
        return torch.randn(batch, length, heads, head_dims, **settings).transpose(1, 2)

    num_queries = query_size[0] * query_size[1]
    q, k, v = rows(num_queries), rows(num_keys), rows(num_keys)
    bias_table = torch.randn(heads, *table_size, **settings)
    locations = torch.rand(batch, groups, num_keys, 2, **settings) * 2.4 - 1.2
    return Inputs(q, k, v, bias_table, locations, query_size, coordinates), rows(num_queries)


def random_features(
    map_size: tuple[int, int] = (17, 33),
    num_points: int = 70,
    batch: int = 2,
    groups: int = 2,
    channels: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, positions, and a gradient of what `sample_features` makes of them, on the CPU.

    The same in each call. Positions are multiples of 1/64, some of them on pixels and some outside the map.
    In maps whose sides are a power of two and one, float32 has their coordinates without rounding: there the
    gradients of positions, which jump at pixels, are the same in float32 and in float64.
    """
    generator = torch.Generator('cpu').manual_seed(0)
    features = torch.randn(batch, *map_size, channels, generator=generator, device='cpu')
    locations = torch.randint(-80, 81, (batch, groups, num_points, 2), generator=generator, device='cpu')
    grad_out = torch.randn(batch, num_points, channels, generator=generator, device='cpu')
    return features, locations / 64, grad_out


def clear_of_knots(inputs: Inputs, margin: float = 1e-3) -> Inputs:
    """Moves keys a little, so that none of their displacements is near a knot of the bias table.

    At a knot the gradient of positions jumps: there, coordinates that are rounded to float32 may give the
    gradient of the neighbouring cell, which is as right.

    Args:
        inputs: Any.
        margin: The least distance to a knot, in knots.
    """
    locations = inputs.sampling_locations.clone()
    queries = query_points(
        *inputs.query_size, inputs.coordinates, dtype=torch.float64, device=locations.device
    )
    for axis, points in enumerate((queries[:, 0, 0], queries[0, :, 1])):
        knots = inputs.bias_table.shape[1 + axis] - 1
        if not knots:  # nothing depends on the position
            continue
        step = 2.5 * margin * 4 / knots
        for _ in range(1000):
            displacements = (points - locations[..., axis, None].double()) / 2
            coordinates = (displacements + 1) * (knots / 2)
            on_table = (coordinates > -2) & (coordinates < knots + 2)
            near = ((coordinates - coordinates.round()).abs() < margin) & on_table
            if not near.any():
                break
            locations[..., axis] += step * near.any(-1)
    return inputs._replace(sampling_locations=locations)


def results(attend: Callable[..., Tensor], inputs: Inputs, grad_out: Tensor) -> dict[str, Tensor]:
    """`out`, which is `attend(*inputs)`, and the gradients of the five tensors, by name."""
    tensors = [t.detach().requires_grad_() for t in inputs.tensors()]
    out = attend(*tensors, inputs.query_size, inputs.coordinates)
    return {'out': out.detach()} | dict(zip(NAMES, torch.autograd.grad(out, tensors, grad_out)))


def truth(inputs: Inputs, grad_out: Tensor) -> dict[str, Tensor]:
    """The results of the equations in float64, where the inputs lie."""
    doubles = Inputs(*(t.double() for t in inputs.tensors()), inputs.query_size, inputs.coordinates)
    return results(deformable_attention_reference, doubles, grad_out.double())


def relative_errors(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference in each tensor, as a part of its largest number; infinite where one is NaN."""
    return {name: _relative_error(ours[name], expected[name]) for name in expected}


def _relative_error(ours: Tensor, expected: Tensor) -> float:
    expected = expected.to(ours.device)
    if not expected.numel() or ours.equal(expected.to(ours.dtype)):
        return 0.0
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    return math.inf if math.isnan(error) else error


class Trial(NamedTuple):
    """Something that a backend must compute.

    Attributes:
        expected: The output `out`, and gradients by the names of the inputs, by the equations in float64.
        run: Computes them on a device, and returns them on the CPU. What is not written is NaN.
    """

    expected: dict[str, Tensor]
    run: Callable[[torch.device], dict[str, Tensor]]


def attention_trials(backend, dtype: torch.dtype) -> Iterator[Trial]:
    """Those of a `DeformableBackend`, with queries, keys and values of a dtype: one for each of `SHAPES`."""
    for shape in SHAPES:
        inputs, grad_out = random_inputs(**shape)
        inputs = clear_of_knots(inputs)
        rows, others = (t.to(dtype) for t in inputs[:3]), inputs[3:]
        inputs = Inputs(*rows, *others)
        tensors = (t.to(to) for t, to in zip(inputs.tensors(), backend.dtypes(inputs)))
        inputs = Inputs(*tensors, inputs.query_size, inputs.coordinates)
        grad_out = grad_out.to(inputs.q.dtype)
        yield Trial(truth(inputs, grad_out), partial(_run, backend, inputs, grad_out))


def _run(backend, inputs: Inputs, grad_out: Tensor, device: torch.device) -> dict[str, Tensor]:
    inputs = Inputs(*(t.to(device) for t in inputs.tensors()), inputs.query_size, inputs.coordinates)
    out, lse = (t.fill_(math.nan) for t in inputs.empty_outputs())
    grads = tuple(t.fill_(math.nan) for t in inputs.empty_grads())
    backend.forward(inputs, out, lse)
    backend.backward(inputs, grad_out.to(device), out, lse, grads)
    return {'out': out.cpu()} | {name: grad.cpu() for name, grad in zip(NAMES, grads)}
