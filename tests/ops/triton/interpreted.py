"""The Triton kernels in Triton's interpreter, on CPU tensors.

`test_interpreter.py` runs this file with `TRITON_INTERPRET=1`. What the interpreter cannot tell: bfloat16 and
TF32, which it computes otherwise, and all that the compiler does.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from triton.runtime.interpreter import InterpreterBuilder

from mmdat.layers import DeformableAttention
from mmdat.ops import deformable_attention, explain
from mmdat.ops.deformable import (
    deformable_attention_reference,
    reference_points,
    relative_position_bias,
)
from mmdat.ops.deformable.backends import BACKENDS
from mmdat.ops.deformable.backends import triton as triton_backend
from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.deformable.operator import OPERATORS
from mmdat.ops.triton import card, launch
from mmdat.ops.triton.tiles import KERNELS, Case, candidates, use_default

assert os.environ['TRITON_INTERPRET'] == '1'

NAMES = 'q', 'k', 'v', 'bias_table', 'sampling_locations'
CAPABILITY = (9, 0)
CARDS = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)

for operator in OPERATORS['triton']:
    operator.register_kernel('cpu')(operator._init_fn)


@pytest.fixture(autouse=True, name='interpreter')
def make_the_cpu_a_card(monkeypatch):
    monkeypatch.setattr(triton_backend.Triton, 'device_type', 'cpu')
    monkeypatch.setattr(triton_backend, 'obstacle', torch.compiler.assume_constant_result(lambda *args: None))
    monkeypatch.setattr(card, 'capability', lambda device: CAPABILITY)


def random_inputs(
    query_size=(5, 6),
    key_size=(3, 3),
    table_size=(7, 9),
    coordinates='half_pixel',
    spread=0.1,
    batch=1,
    groups=1,
    heads_of_a_group=1,
    head_dims=16,
    dtype=torch.float32,
):
    """The five inputs, laid out as the module lays them out, and a gradient of the output.

    Keys stand on their grid, `spread` times a normal distribution off it.
    """
    generator = torch.Generator().manual_seed(0)
    heads = groups * heads_of_a_group
    num_keys = key_size[0] * key_size[1]

    def rows(length):
        return torch.randn(batch, length, heads, head_dims, generator=generator).transpose(1, 2).to(dtype)

    num_queries = query_size[0] * query_size[1]
    inputs = [rows(num_queries), rows(num_keys), rows(num_keys)]
    inputs.append(torch.randn(heads, *table_size, generator=generator))
    offsets = spread * torch.randn(batch, groups, num_keys, 2, generator=generator)
    inputs.append(reference_points(*key_size, coordinates).flatten(0, 1) + offsets)
    return inputs, rows(num_queries)


def run(inputs, grad_out, query_size, coordinates, backend='triton'):
    """Output, and gradients of the five inputs, by name."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = deformable_attention(*inputs, query_size, coordinates, backend)
    return {'out': out} | dict(zip(NAMES, torch.autograd.grad(out, inputs, grad_out)))


def run_with_tiles(inputs, grad_out, query_size, coordinates, case, pick=use_default):
    """As `run`, without operator, and `lse`. What a kernel does not write stays NaN."""
    arguments = Inputs(*inputs, query_size, coordinates)
    out, lse = OPERATORS['triton'].forward._abstract_fn(*arguments)
    grads = OPERATORS['triton'].backward._abstract_fn(grad_out, out, lse, *arguments)
    for tensor in (out, lse, *grads):
        tensor.fill_(torch.nan)
    launch.forward(arguments, out, lse, case, pick)
    launch.backward(arguments, grad_out, out, lse, grads, case, pick)
    return {'out': out, 'lse': lse} | dict(zip(NAMES, grads))


def truth(inputs, grad_out, query_size, coordinates):
    """As `run_with_tiles`, of the equations in float64."""
    doubles = [t.double() for t in inputs]
    results = run(doubles, grad_out.double(), query_size, coordinates, 'reference')
    q, k, _, table, locations = doubles
    bias = relative_position_bias(table, locations, query_size, coordinates)
    return results | {'lse': (q @ k.mT * q.shape[-1] ** -0.5 + bias).logsumexp(-1)}


def assert_near(ours, expected, dtype=torch.float32):
    """In float32 1e-5 of the largest number in each tensor: so exact are positions in tables of 100 knots."""
    for name in ours:
        size = expected[name].abs().max().clamp(min=0.25)
        error = (ours[name].double() - expected[name]).abs().max() / size
        assert error < (2e-3 if dtype == torch.float16 else 1e-5), f'{name}: {error:.1e}'


def case_of(inputs, query_size, coordinates) -> Case:
    return triton_backend._case(Inputs(*inputs, query_size, coordinates))


SHAPES = {
    'odd sizes, groups': dict(
        query_size=(5, 7), key_size=(3, 4), table_size=(9, 13), groups=2, heads_of_a_group=2
    ),
    'corners, keys beyond the map and the table': dict(
        query_size=(9, 18), key_size=(4, 5), table_size=(13, 13), coordinates='corners', spread=2.0
    ),
    'one column': dict(
        query_size=(6, 1), key_size=(3, 1), table_size=(5, 1), coordinates='corners', groups=2, spread=0.3
    ),
    'one pixel': dict(query_size=(1, 1), key_size=(2, 1), table_size=(3, 3)),
    'one key': dict(query_size=(2, 3), key_size=(1, 1), table_size=(3, 3)),
    'two blocks of keys, head 32': dict(
        query_size=(8, 14), key_size=(9, 8), table_size=(27, 27), head_dims=32, coordinates='corners'
    ),
    'head 24, padded to 32': dict(query_size=(7, 7), key_size=(7, 7), table_size=(13, 13), head_dims=24),
    'head 5, padded to 16': dict(head_dims=5, groups=2),
    'head 64': dict(query_size=(4, 9), head_dims=64, heads_of_a_group=2),
    'wide map': dict(query_size=(3, 33), key_size=(2, 11), table_size=(27, 27), spread=0.05),
    'table of many chunks': dict(
        query_size=(5, 17), key_size=(2, 3), table_size=(35, 55), coordinates='corners', spread=0.3
    ),
    'a table of 111 rows': dict(query_size=(5, 5), key_size=(2, 2), table_size=(111, 9)),
    'a table of 111 columns': dict(query_size=(5, 5), key_size=(2, 2), table_size=(9, 111)),
}


IN_HALF_PRECISION = ['odd sizes, groups', 'two blocks of keys, head 32', 'head 24, padded to 32']


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [*((name, torch.float32) for name in SHAPES), *((name, torch.float16) for name in IN_HALF_PRECISION)],
)
def test_truth(shape, dtype):
    settings = SHAPES[shape]
    query_size, coordinates = settings.get('query_size', (5, 6)), settings.get('coordinates', 'half_pixel')
    inputs, grad_out = random_inputs(**settings, dtype=dtype)
    case = case_of(inputs, query_size, coordinates)
    ours = run_with_tiles(inputs, grad_out, query_size, coordinates, case)
    assert_near(ours, truth(inputs, grad_out, query_size, coordinates), dtype)


@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
def test_positions_on_knots(coordinates):
    """At a knot the gradient of positions jumps. All coordinates here are exact in float32."""
    query_size = (8, 16) if coordinates == 'half_pixel' else (9, 17)
    inputs, grad_out = random_inputs(query_size, (5, 9), (17, 33), coordinates)
    steps = torch.arange(45) - 22
    inputs[-1] = torch.stack([steps / 16, steps.roll(11) / 8], dim=-1)[None, None]  # the table ends at 3
    ours = run(inputs, grad_out, query_size, coordinates)
    assert_near(ours, truth(inputs, grad_out, query_size, coordinates))


def all_tiles() -> list[dict]:
    """Tiles of the four kernels, by their names, until each tile of each was there."""
    found = {kernel: {} for kernel in KERNELS}
    for dtype, head_dims, size, heads, capability in itertools.product(
        (torch.float16, torch.float32), (32, 64, 128), (13, 27, 111), (1, 2), CARDS
    ):
        case = Case(capability, dtype, head_dims, (size, size), heads, 'ieee')
        for kernel, tiles in found.items():
            for tile in candidates(kernel, case):
                # warps and stages mean nothing to the interpreter, chunks nothing to the other kernels
                ignored = dict(warps=0, stages=0) | (dict(chunk=0) if kernel != 'table' else {})
                tiles[tile._replace(**ignored)] = tile
    count = max(map(len, found.values()))
    in_turn = {kernel: itertools.cycle(tiles.values()) for kernel, tiles in found.items()}
    return [{kernel: next(tiles) for kernel, tiles in in_turn.items()} for _ in range(count)]


QUERY_SIZE = (9, 18)  # no whole number of any tile


@pytest.fixture(scope='module')
def problem():
    inputs, grad_out = random_inputs(QUERY_SIZE, key_size=(5, 4), table_size=(15, 18))
    case = Case(CAPABILITY, torch.float32, 16, (15, 18), 1, 'ieee')
    return inputs, grad_out, case, truth(inputs, grad_out, QUERY_SIZE, 'half_pixel')


@pytest.mark.parametrize('tiles', all_tiles(), ids=str)
def test_every_tile(tiles, problem):
    inputs, grad_out, case, expected = problem
    ours = run_with_tiles(
        inputs, grad_out, QUERY_SIZE, 'half_pixel', case, lambda kernel, case, trial: tiles[kernel]
    )
    assert_near(ours, expected)


LAYOUTS = {
    'contiguous': torch.Tensor.contiguous,
    'columns first': lambda t: t.mT.contiguous().mT,
    'every second': lambda t: torch.stack([t, t], -1)[..., 0],
    'broadcast': lambda t: t[:1].expand(t.shape),
    'of one projection': lambda t: (
        torch.cat([t, t], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., : t.shape[-1]]
    ),
    'not aligned': lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout):
    inputs, grad_out = random_inputs(batch=2, table_size=(5, 5))
    *inputs, grad_out = (LAYOUTS[layout](t) for t in (*inputs, grad_out))
    results = run(inputs, grad_out, (5, 6), 'half_pixel')
    assert results['out'].transpose(1, 2).is_contiguous()
    assert_near(results, truth(inputs, grad_out, (5, 6), 'half_pixel'))


@pytest.mark.parametrize('wanted', ['q', 'bias_table'])
def test_gradient_of_a_sum_by_one_input(wanted):
    """The gradient of the output then is one number, expanded, and one gradient only is asked for."""
    inputs, grad_out = random_inputs()
    expected = truth(inputs, torch.ones_like(grad_out), (5, 6), 'half_pixel')[wanted]
    tensor = inputs[NAMES.index(wanted)].requires_grad_()
    (grad,) = torch.autograd.grad(deformable_attention(*inputs, (5, 6), 'half_pixel', 'triton').sum(), tensor)
    assert_near({wanted: grad}, {wanted: expected})


def test_images_farther_apart_than_31_bits():
    """Where they lie in 4 GiB of memory, of which little is ever touched."""
    inputs, grad_out = random_inputs(batch=2, dtype=torch.float16)
    query_size, coordinates = (5, 6), 'half_pixel'
    case = case_of(inputs, query_size, coordinates)
    expected = run_with_tiles(inputs, grad_out, query_size, coordinates, case)
    far = [torch.empty(2**31 + t.numel(), dtype=t.dtype) for t in (*inputs[:3], grad_out)]
    *rows, grad_out = (
        memory.as_strided(t.shape, (2**31, *t.stride()[1:])).copy_(t)
        for memory, t in zip(far, (*inputs[:3], grad_out))
    )
    assert launch._rows(rows[0], case.unit) is rows[0]
    ours = run_with_tiles([*rows, *inputs[3:]], grad_out, query_size, coordinates, case)
    for name in expected:
        assert ours[name].equal(expected[name]), name


@pytest.mark.parametrize('empty', ['images', 'queries'])
def test_nothing_to_do(empty):
    inputs, grad_out = random_inputs()
    size = (5, 6)
    if empty == 'images':
        inputs = [t if i == 3 else t[:0] for i, t in enumerate(inputs)]
        grad_out = grad_out[:0]
    else:
        inputs[0], grad_out, size = inputs[0][:, :, :0], grad_out[:, :, :0], (0, 6)
    results = run(inputs, grad_out, size, 'half_pixel')
    assert results['out'].shape == inputs[0].shape
    for name, tensor in zip(NAMES, inputs):
        assert results[name].equal(torch.zeros_like(tensor)), name


@pytest.mark.parametrize('size', [1e4, 1e30])
def test_huge_logits(size):
    inputs, grad_out = random_inputs(key_size=(5, 8))
    q, k, v, _, _ = (t.double() for t in inputs)
    inputs[0] = size * inputs[0]
    results = run(inputs, grad_out, (5, 6), 'half_pixel')
    assert all(tensor.isfinite().all() for tensor in results.values())
    largest, second = (q @ k.mT).topk(2).values.unbind(-1)
    clear = (largest - second) / largest.abs() > 1e-2  # rounding and bias decide nothing here
    assert clear.float().mean() > 0.8
    expected = v.gather(2, (q @ k.mT).argmax(-1, keepdim=True).expand_as(q))
    torch.testing.assert_close(results['out'].double()[clear], expected[clear], atol=1e-5, rtol=0)


def test_nan_position_spoils_its_group_and_no_more(monkeypatch):
    # a card's minimum and maximum pass NaN over, the interpreter's do not, and it then reads anywhere
    monkeypatch.setattr(
        InterpreterBuilder,
        'create_clampf',
        lambda self, x, low, high, _: self.ternary_op(
            x, low, high, lambda a, b, c: np.fmin(np.fmax(a, b), c)
        ),
    )
    inputs, grad_out = random_inputs(batch=2, groups=2)
    inputs[-1][1, 0, 3, 1] = torch.nan
    results = run(inputs, grad_out, (5, 6), 'half_pixel')
    for name in ('out', 'q', 'k', 'v'):
        spoiled = results[name].isnan()
        assert spoiled[1, 0].all(), name
        assert not spoiled[0].any(), name
        assert not spoiled[1, 1].any(), name


def test_two_calls_are_bitwise_equal():
    inputs, grad_out = random_inputs((3, 17), (6, 6))
    first, second = (run(inputs, grad_out, (3, 17), 'corners') for _ in range(2))
    for name in first:
        assert first[name].equal(second[name]), name


def test_registration():
    inputs, grad_out = random_inputs((2, 3))
    settings = ([2, 3], 'corners')
    forward, backward = OPERATORS['triton']
    torch.library.opcheck(forward, (*(t.requires_grad_() for t in inputs), *settings))
    inputs = [t.detach() for t in inputs]
    torch.library.opcheck(backward, (grad_out, *forward(*inputs, *settings), *inputs, *settings))


def test_half_precision_keeps_its_dtypes():
    inputs, grad_out = random_inputs(dtype=torch.float16)
    results = run(inputs, grad_out, (5, 6), 'half_pixel')
    for name, tensor in zip(NAMES, inputs):
        assert results[name].dtype == tensor.dtype
    inputs[0] = inputs[0].float()  # which then has the others computed in float32
    mixed = run(inputs, grad_out, (5, 6), 'half_pixel')
    assert mixed['out'].dtype == torch.float16
    assert mixed['q'].dtype == torch.float32
    expected = truth(inputs, grad_out, (5, 6), 'half_pixel')
    assert_near({'q': mixed['q']}, expected)


def small_module(batch: int = 1) -> tuple[DeformableAttention, torch.Tensor]:
    torch.manual_seed(0)
    layer = DeformableAttention(embed_dims=32, num_heads=2, offset_groups=2, map_size=(8, 8), key_stride=2)
    torch.nn.init.normal_(layer.position_bias_table)
    return layer, torch.randn(batch, 8, 10, 32)


def module_results(layer, forward, x):
    x = x.clone().requires_grad_()
    out = forward(x)
    return out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])


def test_compile(monkeypatch):
    """With fixed sizes; `test_registration` has variable ones."""
    monkeypatch.setenv('MMDAT_BACKEND', 'triton')
    layer, x = small_module()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend='aot_eager')
    ours = module_results(layer, compiled, x)
    monkeypatch.setenv('MMDAT_BACKEND', 'reference')
    for a, b in zip(ours, module_results(layer, layer, x)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_autocast_and_checkpointing(monkeypatch):
    layer, x = small_module()
    results = {}
    for backend in ('reference', 'triton'):
        monkeypatch.setenv('MMDAT_BACKEND', backend)
        with torch.autocast('cpu', dtype=torch.float16):
            results[backend] = module_results(layer, lambda x: checkpoint(layer, x, use_reentrant=False), x)
    for ours, expected in zip(results['triton'], results['reference']):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours.float(), expected.float(), atol=2e-2, rtol=2e-2)


def train_together(rank: int, folder: Path) -> None:
    """In one of two processes, with an image each."""
    with pytest.MonkeyPatch.context() as patch:
        make_the_cpu_a_card.__wrapped__(patch)
        patch.setenv('MMDAT_BACKEND', 'triton')
        distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
        layer, x = small_module(batch=2)
        model = DistributedDataParallel(layer)
        model(x[rank : rank + 1]).square().mean().backward()
        distributed.destroy_process_group()
    torch.save([p.grad for p in layer.parameters()], folder / f'{rank}.pth')


def test_ddp(monkeypatch, tmp_path):
    """Two processes have the gradients that one has with both images."""
    subprocess.run([sys.executable, __file__, tmp_path], check=True, timeout=120)
    monkeypatch.setenv('MMDAT_BACKEND', 'reference')
    layer, x = small_module(batch=2)
    expected = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    for a, b, both in zip(first, second, expected):
        assert a.equal(b)
        torch.testing.assert_close(a, both, atol=1e-5, rtol=1e-4)


def test_self_check(monkeypatch, tmp_path):
    """Kernels that are wrong do not pass it."""
    shape = dict(query_size=(3, 5), num_keys=9, table_size=(7, 9), head_dims=16, batch=1)
    monkeypatch.setattr('mmdat.ops.deformable.comparison.SHAPES', [shape])
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MMDAT_SELF_CHECK', raising=False)
    device = torch.device('cpu')
    assert triton_backend.self_check(device, torch.float16) is None
    monkeypatch.setattr(launch, '_axes', lambda inputs: [(0.0, 0.1, 3.0)] * 2)
    assert 'failed the self-check' in triton_backend.self_check(device, torch.float32)


def test_ladder_takes_it(monkeypatch):
    inputs, _ = random_inputs()
    monkeypatch.setattr(
        'mmdat.ops.deformable.dispatch.ladder', lambda device: (BACKENDS['triton'], BACKENDS['portable'])
    )
    assert explain(*inputs, (5, 6)) == 'triton: 270 logits'
    expected = deformable_attention_reference(*inputs, (5, 6))
    torch.testing.assert_close(deformable_attention(*inputs, (5, 6)), expected, atol=1e-5, rtol=1e-5)


if __name__ == '__main__':  # for `test_ddp`; forked, because importing takes long
    multiprocessing.start_processes(train_together, (Path(sys.argv[1]),), nprocs=2, start_method='fork')
