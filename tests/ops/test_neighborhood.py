"""The op against a loop that spells out the definition."""

import math

import pytest
import torch
from helpers.memory import PeakMemory

from mmdat.ops import neighborhood_attention


def by_definition(q, k, v, bias_table):
    """Each query with the keys that NATTEN 0.14 gives it."""
    _, height, width, _, head_dims = q.shape
    size = (bias_table.shape[-1] + 1) // 2
    rows = []
    for i in range(height):
        top = min(max(i - size // 2, 0), height - size)
        for j in range(width):
            left = min(max(j - size // 2, 0), width - size)
            keys, values = (t[:, top : top + size, left : left + size].flatten(1, 2) for t in (k, v))
            first_row, first_column = top - i + size - 1, left - j + size - 1
            bias = bias_table[:, first_row : first_row + size, first_column : first_column + size]
            logits = torch.einsum('bmd,bnmd->bmn', q[:, i, j], keys) / math.sqrt(head_dims)
            weights = (logits + bias.flatten(1)).softmax(-1)
            rows.append(torch.einsum('bmn,bnmd->bmd', weights, values))
    return torch.stack(rows, 1).view(q.shape)


def random_inputs(height, width, kernel_size, batch=2, heads=2, head_dims=3, **kwargs):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, height, width, heads, head_dims)] * 3 + [(heads, *[2 * kernel_size - 1] * 2)]
    kwargs = dict(dtype=torch.float64) | kwargs
    return [torch.randn(shape, generator=generator, **kwargs).requires_grad_() for shape in shapes]


# One tile and several, with each remainder that tiles of 8 (and of 11, for that kernel) can leave.
SIZES = [(7, 7), (7, 25), (8, 29), (9, 18), (15, 22), (16, 24), (19, 12)]


@pytest.mark.parametrize('max_logits', [1, 2**23])
@pytest.mark.parametrize(
    ('height', 'width', 'kernel_size'),
    [*((*size, 7) for size in SIZES), (1, 4, 1), (3, 4, 3), (9, 17, 5), (12, 23, 11)],
)
def test_equals_the_definition(height, width, kernel_size, max_logits):
    inputs = random_inputs(height, width, kernel_size)
    out, expected = neighborhood_attention(*inputs, max_logits), by_definition(*inputs)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    weight = torch.randn(out.shape, dtype=out.dtype)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), inputs) for y in (out, expected))
    for gradient, expected_gradient in zip(ours, theirs):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(neighborhood_attention(*inputs, max_logits), out)


def test_softmax_is_in_float32_under_autocast():
    q, k, v, bias_table = (t.detach() for t in random_inputs(12, 20, 7, dtype=torch.float32))
    inputs = (0 * q, k, v.bfloat16().float(), bias_table + 100)  # where bfloat16 has steps of 0.5
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = neighborhood_attention(*inputs)
    torch.testing.assert_close(out.float(), neighborhood_attention(*inputs), atol=0.02, rtol=0)


def peak_memory(height: int, width: int, **settings) -> int:
    with torch.device('meta'):
        inputs = [torch.empty(1, height, width, 2, 32, requires_grad=True) for _ in range(3)]
        inputs.append(torch.empty(2, 13, 13, requires_grad=True))
    with PeakMemory() as memory:
        neighborhood_attention(*inputs, **settings).sum().backward()
    return memory.peak


def test_memory_is_linear_and_the_logits_take_a_bounded_part():
    assert peak_memory(400, 672) < 4 * peak_memory(200, 336)
    copy_of_q = 200 * 336 * 64 * 4
    assert peak_memory(200, 336, max_logits=1) < 10 * copy_of_q


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(bias_table=torch.zeros(2, 11, 11)), r'with an odd K, got \(2, 11, 11\)'),
        (dict(bias_table=torch.zeros(2, 13, 9)), r'\(2, 13, 9\)'),
        (dict(bias_table=torch.zeros(3, 13, 13)), r'shape \(2, 2 K - 1, 2 K - 1\)'),
        (dict(bias_table=torch.zeros(2, 17, 17)), 'height=8, width=9, kernel_size=9'),
    ],
)
def test_bad_arguments_are_named(change, message):
    inputs = dict(zip(('q', 'k', 'v', 'bias_table'), random_inputs(8, 9, 7)))
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**inputs | change)
