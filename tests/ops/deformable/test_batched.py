"""The portable backend as GPUs run it: all heads at once, in blocks by the memory that is free."""

import random

import pytest
import torch
from helpers.deformable import assert_equal_to_the_truth, random_inputs, run
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmdat.ops import explain
from mmdat.ops.deformable import batched
from mmdat.ops.deformable.backends import portable
from mmdat.ops.deformable.inputs import Inputs

GIB = 2**30


@pytest.fixture
def free(request, monkeypatch) -> int:
    """Bytes of memory that are free on a GPU."""
    for module in (batched, portable):
        monkeypatch.setattr(module, 'free_memory', lambda device, case: request.param)
    return request.param


@pytest.fixture
def on_gpus(monkeypatch):
    monkeypatch.setattr(portable, '_has_large_blocks', lambda inputs: True)


# a key a block, some blocks, one block
@pytest.mark.parametrize('free', [0, 2**21, 16 * GIB], indirect=True)
@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
@pytest.mark.parametrize('seed', range(4))
def test_equals_the_truth(seed, coordinates, free, on_gpus):
    draw = random.Random(seed)
    query_size = draw.randint(1, 30), draw.randint(1, 30)
    inputs, grad_out = random_inputs(
        query_size,
        num_keys=draw.randint(2, 40),
        table_size=(draw.randint(1, 40), draw.randint(2, 60)),
        groups=draw.randint(1, 3),
        heads_of_a_group=draw.randint(1, 2),
    )
    inputs[-1][:, :, ::7] *= draw.choice([3, 1000])  # beyond the table
    assert_equal_to_the_truth(inputs, grad_out, query_size, coordinates, 'portable')


@pytest.mark.parametrize('free', [GIB], indirect=True)
def test_no_images(free, on_gpus):
    inputs, grad_out = random_inputs(batch=1)
    *inputs, grad_out = (t if i == 3 else t[:0] for i, t in enumerate((*inputs, grad_out)))
    results = run(inputs, grad_out, (5, 6), backend='portable')
    assert results['out'].shape == inputs[0].shape
    assert results['bias_table'].equal(torch.zeros_like(inputs[3]))


class Launches(TorchDispatchMode):
    """Counts operators that are not views, each a kernel at least."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__
        self.number += not (func.is_view or 'empty' in name or 'view' in name or name.startswith('device'))
        return func(*args, **(kwargs or {}))


def fake_inputs(batch, heads, groups, query_size, num_keys, table) -> Inputs:
    """On a GPU that is not there."""

    def empty(*shape):
        return torch.empty(shape, device='cuda')

    queries = query_size[0] * query_size[1]
    q, k = empty(batch, heads, queries, 32), empty(batch, heads, num_keys, 32)
    tables, locations = empty(heads, table, table), empty(batch, groups, num_keys, 2)
    return Inputs(q, k, k, tables, locations, query_size, 'half_pixel')


# stages of detectors at 800 x 1344, of DAT++, and of classifiers
@pytest.mark.parametrize(
    'sizes',
    [
        (2, 12, 3, (50, 84), 4200, 27),
        (2, 2, 1, (200, 336), 1050, 111),
        (2, 24, 6, (25, 42), 1050, 13),
        (128, 12, 3, (14, 14), 196, 27),
    ],
)
@pytest.mark.parametrize('free', [16 * GIB], indirect=True)
def test_a_call_has_at_most_1000_launches(sizes, free):
    with FakeTensorMode(), Launches() as launches:
        inputs = fake_inputs(*sizes)
        out, lse = torch.empty_like(inputs.q), inputs.q.new_empty(inputs.q.shape[:-1])
        portable.Portable().forward(inputs, out, lse)
        grads = tuple(torch.empty_like(t) for t in inputs.tensors())
        portable.Portable().backward(inputs, torch.empty_like(out), out, lse, grads)
    assert launches.number <= 1000


@pytest.mark.parametrize(
    ('free', 'expected'),
    [
        (8 * GIB, 'portable: 105840000 logits'),
        (
            80 * GIB,
            'reference: 105840000 logits, not portable: pays from 447392426 logits on, an eighth of the 80.0 '
            'GiB that are free',
        ),
    ],
    indirect=['free'],
)
def test_it_serves_before_the_equations_fill_the_memory(free, expected):
    with FakeTensorMode():
        assert explain(*fake_inputs(2, 12, 3, (50, 84), 1050, 27)).endswith(expected)
