"""The op against a loop that spells out Equations (8) and (9)."""

import math

import pytest
import torch

from mmdat.ops import deformable_attention, sample_features
from mmdat.ops.deformable import offset_unit, query_points, reference_points


def tent_interpolation(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Equation (8) on `(C, H, W)`, `y` and `x` in pixels."""
    _, height, width = image.shape
    weights = torch.tensor(
        [[max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) for j in range(width)] for i in range(height)]
    )
    return (image * weights.to(image.dtype)).sum((1, 2))


def random_inputs(query_size, num_keys, heads=4, groups=2, head_dims=5, table=(5, 7), batch=2):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    q = normal(batch, heads, query_size[0] * query_size[1], head_dims)
    k, v = normal(batch, heads, num_keys, head_dims), normal(batch, heads, num_keys, head_dims)
    return q, k, v, normal(heads, *table), normal(batch, groups, num_keys, 2)


@pytest.mark.parametrize(('query_size', 'num_keys'), [((3, 4), 5), ((1, 6), 3), ((1, 1), 1)])
@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
def test_equations_8_and_9(query_size, num_keys, coordinates):
    q, k, v, table, locations = random_inputs(query_size, num_keys)
    out = deformable_attention(q, k, v, table, locations, query_size, coordinates)

    height, width = query_size
    queries = query_points(*query_size, coordinates, dtype=torch.float64)
    for b, m, i, j in [(0, 0, 0, 0), (1, 3, height - 1, width - 1), (1, 2, 0, width // 2)]:
        query = q[b, m, i * width + j]
        y, x = queries[i, j].tolist()
        logits = []
        for n in range(num_keys):
            key_y, key_x = locations[b, m // 2, n].tolist()
            row, column = ((y - key_y) / 2 + 1) * 2, ((x - key_x) / 2 + 1) * 3
            bias = tent_interpolation(table[m : m + 1], row, column)
            logits.append(query @ k[b, m, n] / math.sqrt(5) + bias[0])
        expected = torch.stack(logits).softmax(0) @ v[b, m]
        torch.testing.assert_close(out[b, m, i * width + j], expected)


def test_sampling_is_bilinear_per_group_and_zero_outside():
    features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    locations = torch.tensor([[0.3, -0.7], [-1.0, 1.0], [1.4, 0.2]], dtype=torch.float64)
    locations = torch.stack([locations, -locations]).expand(2, 2, 3, 2)
    sampled = sample_features(features, locations)
    for n in range(3):
        for group in range(2):
            y, x = ((locations[0, group, n] + 1) / 2 * torch.tensor([3, 4])).tolist()
            image = features[1, :, :, 3 * group : 3 * group + 3].permute(2, 0, 1)
            expected = tent_interpolation(image, y, x)
            torch.testing.assert_close(sampled[1, n, 3 * group : 3 * group + 3], expected)


@pytest.mark.parametrize(
    ('coordinates', 'keys', 'queries', 'unit'),
    [
        ('half_pixel', [-0.75, -0.25, 0.25, 0.75], [-0.75, -0.25, 0.25, 0.75], 1 / 4),
        ('corners', [-2 / 3, 0, 2 / 3, 4 / 3], [-1, -1 / 3, 1 / 3, 1], 1 / 3),
    ],
)
def test_coordinates(coordinates, keys, queries, unit):
    for function, expected in ((reference_points, keys), (query_points, queries)):
        points = function(1, 4, coordinates)
        assert points.shape == (1, 4, 2)
        torch.testing.assert_close(points[0], torch.tensor([[0, x] for x in expected]))
        torch.testing.assert_close(function(4, 1, coordinates)[:, 0].flip(-1), points[0])
    assert offset_unit(4, coordinates) == unit
    assert offset_unit(1, coordinates) == 1


def test_gradients():
    inputs = random_inputs((2, 3), 4, heads=2, groups=1, head_dims=2, batch=1)
    assert torch.autograd.gradcheck(lambda *args: deformable_attention(*args, (2, 3)), inputs)


def test_huge_logits_stay_finite():
    q, k, v, table, locations = random_inputs((3, 3), 6)
    out = deformable_attention(1e4 * q, 1e4 * k, v, table, locations, (3, 3))
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(query_size=(2, 2)), r'query_size=\(2, 2\) does not fit 12 queries'),
        (dict(bias_table=torch.zeros(3, 5, 5)), 'num_heads=4, tables=3'),
        (dict(sampling_locations=torch.zeros(2, 3, 5, 2)), 'groups=3'),
        (dict(k=torch.zeros(2, 4, 6, 5)), 'a row for each sampling location'),
        (dict(q=torch.zeros(2, 4, 12, 7)), r'same images, heads and channels, got q \(2, 4, 12, 7\)'),
        (dict(sampling_locations=torch.zeros(1, 2, 5, 2)), r'with B = 2, got \(1, 2, 5, 2\)'),
        (
            dict(
                k=torch.zeros(2, 4, 0, 5),
                v=torch.zeros(2, 4, 0, 5),
                sampling_locations=torch.zeros(2, 2, 0, 2),
            ),
            'there must be one at least',
        ),
        (dict(backend='cuda'), "unknown backend 'cuda'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    names = ('q', 'k', 'v', 'bias_table', 'sampling_locations')
    inputs = dict(zip(names, random_inputs((3, 4), 5)), query_size=(3, 4))
    with pytest.raises(ValueError, match=message):
        deformable_attention(**inputs | change)
