"""The fast backends against the reference in float64, their layouts, dtypes and registration with PyTorch."""

import random

import pytest
import torch
from helpers.deformable import NAMES, assert_equal_to_the_truth, random_inputs, run
from helpers.memory import PeakMemory

from mmdat.layers import DeformableAttention
from mmdat.ops import deformable_attention
from mmdat.ops.deformable.backends import portable
from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.deformable.operator import OPERATORS

fast_backends = pytest.mark.parametrize('backend', ['portable', 'cpu'], indirect=True)
both_coordinates = pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])


@fast_backends
@both_coordinates
@pytest.mark.parametrize('seed', range(16))
def test_random_sizes(seed, coordinates, backend):
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
    )
    beyond_the_table = inputs[-1][:, :, ::7]
    beyond_the_table *= draw.choice([3, 1000])
    assert_equal_to_the_truth(inputs, grad_out, query_size, coordinates, backend)


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
@pytest.mark.parametrize('query_size', [(3, 1), (5, 3), (7, 7), (13, 10), (3, 20), (5, 40)])
def test_vectors_of_two_pieces(query_size, backend):
    """Some of these widths make the kernel use them, whether vectors have 4, 8 or 16 lanes. Where the number
    of pieces is odd, the last one is behind the map."""
    inputs, grad_out = random_inputs(query_size, 40, (27, 27), head_dims=32)
    assert_equal_to_the_truth(inputs, grad_out, query_size, 'half_pixel', backend)


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
@pytest.mark.parametrize('threads', [1, 5])
def test_shares_of_threads_begin_and_end_inside_heads(threads, backend):
    inputs, grad_out = random_inputs((14, 14), 20, (27, 27), batch=3, groups=3, heads_of_a_group=4)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal_to_the_truth(inputs, grad_out, (14, 14), 'half_pixel', backend)
    finally:
        torch.set_num_threads(usual)


@both_coordinates
@pytest.mark.parametrize('keys_of_a_block', [1, 4, 9, 22])
def test_blocks_of_the_portable_backend_join(keys_of_a_block, coordinates, monkeypatch):
    monkeypatch.setattr(portable, 'BLOCK_SIZE', 0)
    monkeypatch.setattr(portable, 'MIN_KEYS', keys_of_a_block)
    inputs, grad_out = random_inputs(num_keys=23)
    assert_equal_to_the_truth(inputs, grad_out, (5, 6), coordinates, 'portable')


@fast_backends
@pytest.mark.parametrize(
    ('query_size', 'coordinates'),
    [((8, 16), 'half_pixel'), ((1, 64), 'half_pixel'), ((9, 17), 'corners'), ((33, 1), 'corners')],
)
@pytest.mark.parametrize('table_size', [(17, 9), (9, 33), (1, 5), (5, 1), (2, 3)])
def test_positions_on_knots(query_size, coordinates, table_size, backend):
    """At a knot the gradient of positions jumps, so here all coordinates are multiples of powers of two,
    which are exact in float32."""
    inputs, grad_out = random_inputs(query_size, num_keys=45, table_size=table_size)
    steps = torch.arange(45) - 22
    positions = torch.stack([steps / 16, steps.roll(11) / 8], dim=-1)  # the map ends at 1, the table at 3
    inputs[-1] = torch.stack([positions, positions.flip(0)]).expand(2, 2, 45, 2)
    assert_equal_to_the_truth(inputs, grad_out, query_size, coordinates, backend)


@fast_backends
@pytest.mark.parametrize(('num_keys', 'table_size'), [(1, (7, 9)), (9, (1, 1))])
def test_bias_without_effect(num_keys, table_size, backend):
    """One key gets all attention whatever its bias, and a table of one entry favours none: no gradients."""
    inputs, grad_out = random_inputs(num_keys=num_keys, table_size=table_size)
    ours = run(inputs, grad_out, (5, 6), backend=backend)
    if num_keys == 1:
        torch.testing.assert_close(ours['out'], inputs[2].expand_as(ours['out']))
        torch.testing.assert_close(ours['v'], grad_out.sum(2, keepdim=True))
    for name in ('bias_table', 'sampling_locations'):
        torch.testing.assert_close(ours[name], torch.zeros_like(ours[name]), atol=2e-5, rtol=0)


def test_no_images(backend):
    inputs, grad_out = random_inputs(batch=1)
    *inputs, grad_out = (t if i == 3 else t[:0] for i, t in enumerate((*inputs, grad_out)))
    results = run(inputs, grad_out, (5, 6), backend=backend)
    assert results['out'].shape == inputs[0].shape
    assert results['bias_table'].equal(torch.zeros_like(inputs[3]))


@pytest.mark.parametrize('size', [1e4, 1e8, 1e30])
def test_huge_logits(size, backend):
    inputs, grad_out = random_inputs(num_keys=40)
    q, k, v, _, _ = (t.double() for t in inputs)
    inputs[0] = size * inputs[0]
    results = run(inputs, grad_out, (5, 6), backend=backend)
    assert all(tensor.isfinite().all() for tensor in results.values())
    largest, second = (q @ k.mT).topk(2).values.unbind(-1)
    clear = (largest - second) / largest.abs() > 1e-3  # rounding of other logits decides nothing here
    assert clear.float().mean() > 0.9
    expected = v.gather(2, (q @ k.mT).argmax(-1, keepdim=True).expand_as(q))
    torch.testing.assert_close(results['out'].double()[clear], expected[clear], atol=1e-5, rtol=0)


@fast_backends
def test_huge_logits_that_are_rounded_otherwise_in_the_backward_pass(backend):
    """As they may be when the number of threads changes in between."""
    inputs, grad_out = random_inputs()
    inputs[0] *= 1e30
    forward, backward = OPERATORS[backend]
    out, lse = forward(*inputs, (5, 6), 'corners')
    lse *= 1 - 1e-6
    grads = backward(grad_out, out, lse, *inputs, (5, 6), 'corners')
    assert all(tensor.isfinite().all() for tensor in grads)


@pytest.mark.parametrize('backend', ['reference', 'portable'], indirect=True)
@both_coordinates
def test_gradients(backend, coordinates):
    inputs, _ = random_inputs((2, 3), 4, (3, 4), 1, 1, 2, 2, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(
        lambda *args: deformable_attention(*args, (2, 3), coordinates, backend), inputs
    )


@fast_backends
def test_nan_position_spoils_its_group_and_no_more(backend):
    inputs, grad_out = random_inputs()
    inputs[-1][1, 0, 3, 1] = torch.nan
    results = run(inputs, grad_out, (5, 6), backend=backend)
    spoiled = results['out'].isnan()
    assert spoiled[1, :2].all()
    assert not spoiled[0].any()
    assert not spoiled[1, 2:].any()
    assert results['q'][1, :2].isnan().all()


LAYOUTS = {
    'contiguous': torch.Tensor.contiguous,
    'columns first': lambda t: t.mT.contiguous().mT,
    'every second': lambda t: torch.stack([t, t], -1)[..., 0],
    'broadcast': lambda t: t[:1].expand(t.shape),
}


@fast_backends
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, backend):
    inputs, grad_out = random_inputs()
    *inputs, grad_out = (LAYOUTS[layout](t) for t in (*inputs, grad_out))
    usual = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (*inputs, grad_out)]
    results = run(inputs, grad_out, (5, 6), backend=backend)
    expected = run(usual[:5], usual[5], (5, 6), backend=backend)
    assert results['out'].transpose(1, 2).is_contiguous()
    for name in results:
        torch.testing.assert_close(results[name], expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype, backend):
    inputs, grad_out = random_inputs(dtype=torch.float64)
    expected = run(inputs, grad_out, (5, 6), backend='reference')
    *inputs, locations = (t.to(dtype) for t in inputs)
    # positions need more digits, so the module computes them in float32
    inputs.append(locations.float())
    results = run(inputs, grad_out.to(dtype), (5, 6), backend=backend)
    for name, tensor in zip(NAMES, inputs):
        assert results[name].dtype == tensor.dtype
    assert results['out'].dtype == dtype
    error = (results['out'] - expected['out']).abs().max() / expected['out'].abs().max()
    assert error < 8 * torch.finfo(dtype).eps


@fast_backends
def test_autocast_does_not_lower_the_precision_inside(backend):
    inputs, grad_out = random_inputs()
    expected = run(inputs, grad_out, (5, 6), backend=backend)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        results = run(inputs, grad_out, (5, 6), backend=backend)
    for name in results:
        torch.testing.assert_close(results[name], expected[name], atol=0, rtol=0)


@fast_backends
def test_two_calls_are_bitwise_equal(backend):
    inputs, grad_out = random_inputs((23, 31), 150, (13, 27), head_dims=32)
    first, second = (run(inputs, grad_out, (23, 31), backend=backend) for _ in range(2))
    for name in first:
        assert first[name].equal(second[name]), name


@fast_backends
def test_registration(backend):
    inputs, grad_out = random_inputs((2, 3), 4)
    settings = ([2, 3], 'corners')
    forward, backward = OPERATORS[backend]
    torch.library.opcheck(forward, (*(t.requires_grad_() for t in inputs), *settings))
    inputs = [t.detach() for t in inputs]
    torch.library.opcheck(backward, (grad_out, *forward(*inputs, *settings), *inputs, *settings))


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.double(), 'cannot serve: the kernel computes in float32, not in torch.float64'),
        (lambda t: t.bfloat16(), 'takes tensors of .*float32.* got .*bfloat16'),
        (lambda t: t[:, :, :1], 'does not fit 1 queries|each sampling location|needs shape'),
    ],
)
def test_operators_refuse_what_their_kernel_would_misread(change, message, backend):
    """All tensors, or one of them."""
    inputs, grad_out = random_inputs((2, 3), 4)
    forward, backward = OPERATORS[backend]
    out, lse = forward(*inputs, [2, 3], 'corners')
    for changed in (range(5), [0]):
        others = [change(t) if i in changed else t for i, t in enumerate(inputs)]
        with pytest.raises(ValueError, match=message if len(changed) > 1 else 'mmdat::|does not fit'):
            forward(*others, [2, 3], 'corners')
        with pytest.raises(ValueError, match=message if len(changed) > 1 else 'mmdat::|does not fit'):
            backward(grad_out, out, lse, *others, [2, 3], 'corners')
    with pytest.raises(ValueError, match='grad_out, out and lse do not fit q'):
        backward(grad_out[:, :, 1:], out, lse, *inputs, [2, 3], 'corners')


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
def test_operators_of_the_kernel_are_for_cpus_only(backend):
    """A graph that was exported on a CPU and moved must not hand other addresses to C++."""
    for operator in OPERATORS[backend]:
        name = operator._qualname
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CPU')
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CUDA')
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CompositeExplicitAutograd')


def small_module() -> tuple[DeformableAttention, torch.Tensor]:
    torch.manual_seed(0)
    layer = DeformableAttention(embed_dims=16, num_heads=4, offset_groups=2, map_size=(8, 8), key_stride=2)
    torch.nn.init.normal_(layer.position_bias_table)
    return layer, torch.randn(2, 8, 10, 16)


def module_results(layer, forward, x):
    x = x.clone().requires_grad_()
    out = forward(x)
    return out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])


def assert_compiles(compiler):
    layer, x = small_module()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    for ours, expected in zip(module_results(layer, compiled, x), module_results(layer, layer, x)):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_compile(backend, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    assert_compiles('aot_eager')


@pytest.mark.slow
def test_compile_with_inductor(monkeypatch):
    """With one backend, because the kernels are opaque to compilers."""
    monkeypatch.setenv('MMDAT_BACKEND', 'portable')
    assert_compiles('inductor')


def test_export(backend, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    layer, x = small_module()
    exported = torch.export.export(layer, (x,))
    assert (backend == 'reference') != any('mmdat' in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), layer(x))


def scratch_memory(query_size: tuple[int, int], num_keys: int) -> int:
    """Bytes that the portable backend takes beyond inputs and outputs, forward and backward."""
    with torch.device('meta'):
        q, k = (torch.empty(1, 3, length, 32) for length in (query_size[0] * query_size[1], num_keys))
        inputs = [q, k, torch.empty_like(k), torch.empty(3, 27, 27), torch.empty(1, 3, num_keys, 2)]
        out, lse = torch.empty_like(q), torch.empty(q.shape[:-1])
    grad_out, *grads = (torch.empty_like(t) for t in (out, *inputs))
    with PeakMemory() as memory:
        backend, arguments = portable.Portable(), Inputs(*inputs, query_size, 'corners')
        backend.forward(arguments, out, lse)
        backend.backward(arguments, grad_out, out, lse, grads)
    return memory.peak - sum(t.nbytes for t in (*inputs, out, lse, grad_out, *grads))


def test_memory_of_the_portable_backend_is_bounded_in_keys_and_linear_in_queries():
    scratch = scratch_memory((50, 80), 1000)
    assert scratch < 32 * 2**20
    assert scratch_memory((50, 80), 4000) == scratch
    assert scratch_memory((100, 160), 1000) < 4 * scratch
