"""Inputs of deformable attention, and the truth about its outputs and gradients."""

import torch

from mmdat.ops import deformable_attention

NAMES = ('q', 'k', 'v', 'bias_table', 'sampling_locations')


def random_inputs(
    query_size=(5, 6),
    num_keys=9,
    table_size=(7, 9),
    batch=2,
    groups=2,
    heads_of_a_group=2,
    head_dims=5,
    dtype=torch.float32,
):
    """The five inputs, laid out as the module lays them out, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    heads = groups * heads_of_a_group

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    def rows(length):
        return normal(batch, length, heads, head_dims).transpose(1, 2)

    num_queries = query_size[0] * query_size[1]
    inputs = [rows(num_queries), rows(num_keys), rows(num_keys), normal(heads, *table_size)]
    inputs.append(torch.rand(batch, groups, num_keys, 2, generator=generator, dtype=dtype) * 2.4 - 1.2)
    return inputs, rows(num_queries)


def run(inputs, grad_out, query_size, coordinates='half_pixel', backend=None):
    """Output, and gradients of the five inputs, by name."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = deformable_attention(*inputs, query_size, coordinates, backend)
    return {'out': out} | dict(zip(NAMES, torch.autograd.grad(out, inputs, grad_out)))


def assert_equal_to_the_truth(inputs, grad_out, query_size, coordinates, backend):
    """2e-6 for the output and 1e-5 for gradients, of the largest number in each tensor."""
    ours = run(inputs, grad_out, query_size, coordinates, backend)
    doubles = [t.double() for t in inputs]
    truth = run(doubles, grad_out.double(), query_size, coordinates, 'reference')
    for name, expected in truth.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max()
        tolerance = 2e-6 if name == 'out' else 1e-5
        assert error < tolerance or ours[name].equal(expected.float()), f'{name}: {error:.1e}'
