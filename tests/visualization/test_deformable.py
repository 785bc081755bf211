from types import SimpleNamespace

import pytest
import torch
from helpers.narrow import ARCH
from torch import nn

from mmdat.backbones import DAT
from mmdat.errors import UserError
from mmdat.layers import DeformableAttention, WindowAttention
from mmdat.ops.windows import window_reverse
from mmdat.visualization import DeformableLayer, deformable, deformable_layers, propagate_scores, top_keys
from mmdat.visualization.deformable import find_dat, last_of_each_stage

SETTINGS = [
    dict(),
    dict(coordinates='corners', offset_range='map'),
    dict(coordinates='corners', offset_range=0.0),
    dict(pos_bias='fixed'),
    dict(pos_bias=None),
]


def attention(**settings):
    torch.manual_seed(0)
    attn = DeformableAttention(16, 4, 2, map_size=(6, 6), key_stride=2, kernel_size=3, **settings).eval()
    for p in attn.parameters():
        nn.init.normal_(p, std=0.5)
    return attn


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_weights_are_those_of_the_output(settings, backend, monkeypatch):
    """With them the output of `forward`, by any backend, is the weighted sum of the values."""
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    attn = attention(**settings)
    x = torch.randn(2, 7, 9, 16)
    with torch.no_grad():
        weights = attn.attention_weights(x)
        locations = attn.sampling_locations(x).flatten(2, 3)
        v = attn.v(attn.sample(x, locations)).unflatten(-1, (4, -1)).transpose(1, 2)
        z = (weights @ v).transpose(1, 2).flatten(2).view(x.shape)
        torch.testing.assert_close(attn.proj(z), attn(x), rtol=1e-4, atol=1e-5)
    assert weights.shape == (2, 4, 63, 20)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 63))


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_weights_of_some_queries(settings):
    attn = attention(**settings)
    x = torch.randn(1, 6, 6, 16)
    queries = torch.tensor([35, 0, 7])
    with torch.no_grad():
        torch.testing.assert_close(
            attn.attention_weights(x, queries), attn.attention_weights(x)[:, :, queries]
        )


@pytest.mark.parametrize('shifted', [False, True])
def test_weights_of_windows(shifted):
    torch.manual_seed(0)
    attn = WindowAttention(8, 2, 4, shifted).eval()
    nn.init.normal_(attn.relative_position_bias_table)
    x = torch.randn(1, 6, 9, 8)
    with torch.no_grad():
        weights = attn.attention_weights(x)
        assert weights.shape == (1, 6, 2, 16, 16)
        padded = nn.functional.pad(x, (0, 0, 0, 3, 0, 2)).roll((-attn.shift, -attn.shift), (1, 2))
        windows = padded.unflatten(1, (2, 4)).unflatten(3, (3, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        v = attn.qkv(windows)[..., 16:].unflatten(-1, (2, -1)).transpose(2, 3)
        z = window_reverse((weights @ v).transpose(2, 3).flatten(3), 4, 8, 12)
        z = z.roll((attn.shift, attn.shift), (1, 2))[:, :6, :9]
        torch.testing.assert_close(attn.proj(z), attn(x), rtol=1e-4, atol=1e-5)


def test_top_keys():
    """Three heads would be one too many: two groups of two heads with three keys each."""
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.4, 0.3], [0.9, 0.1, 0.0], [0.5, 0.0, 0.5]])
    locations = torch.arange(12.0).view(2, 3, 2)
    points, scores = top_keys(weights, locations, 3)
    # sums of each group over 4: 0.1, 0.15, 0.25 and 0.35, 0.025, 0.125
    torch.testing.assert_close(scores, torch.tensor([0.35, 0.25, 0.15]))
    assert points.tolist() == [[6, 7], [4, 5], [2, 3]]
    points, scores = top_keys(weights, locations, 2, head=1)
    torch.testing.assert_close(scores, torch.tensor([0.4, 0.3]))
    assert points[0].tolist() == [2, 3]
    points, scores = top_keys(weights, locations, 99, head=2)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.1, 0.0]))
    assert points.tolist() == [[6, 7], [8, 9], [10, 11]]
    torch.testing.assert_close(top_keys(weights, locations, 99)[1].sum(), torch.tensor(1.0))


def layer(name, size, locations, weights):
    """A layer that attends as told: `locations` `(1, G, H_k, W_k, 2)`, `weights` `(1, M, N_q, N_k)`."""
    attn = SimpleNamespace(
        num_heads=weights.shape[1],
        sampling_locations=lambda x: locations,
        sample=DeformableAttention(2, 1, 1, (1, 1)).sample,
        attention_weights=lambda x, queries: weights[:, :, queries],
    )
    return DeformableLayer(name, attn, torch.zeros(1, *size, 2))


def by_hand():
    """Two queries of stage 4 attend to two keys; eight of stage 3, in two heads with points of their own."""
    last = layer(
        'stages.3.blocks.1.attn',
        (1, 2),
        torch.tensor([[[[[0.0, -1.0], [0.0, 0.0]]]]]),  # on the left pixel, and between both
        torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]),
    )
    left, right = [1.0, 0.0], [0.0, 1.0]
    weights = torch.tensor([[2 * [left, left, right, right], 8 * [right]]])
    locations = torch.tensor([[[[[-1.0, -1.0], [1.0, 1.0]]], [[[-1.0, 1.0], [1.0, -1.0]]]]])
    return [layer('stages.2.blocks.1.attn', (2, 4), locations, weights), last]


def test_scores_by_hand():
    first, last = propagate_scores(by_hand(), torch.ones(1, 2))
    # both queries have a half: 1/2 * 1 + 1/2 * 1/2, and 1/2 * 1/2
    assert last.flatten().tolist() == [0.75, 0.25]
    # the left pixel gets 3/4 + 1/8, the right one 1/8; each passes it to its four pixels of stage 3. Head 1
    # attends to its first key from the left half; head 2 always to its second.
    assert first.flatten().tolist() == [0.875 / 2, 0.125 / 2, 0, 0.5]
    assert first.shape == (1, 2, 1, 2)


def test_padding_has_no_share():
    first, last = propagate_scores(by_hand(), torch.tensor([[True, False]]))
    assert last.flatten().tolist() == [1, 0]  # of the first query alone
    assert first.flatten().tolist() == [0.5, 0, 0, 0.5]


def test_what_falls_outside_the_map_is_lost():
    layers = by_hand()
    outside = torch.tensor([[[[[0.0, -1.0], [0.0, 2.0]]]]])  # half a pixel beyond the right one
    layers[-1].attn.sampling_locations = lambda x: outside
    first, last = propagate_scores(layers, torch.ones(1, 2))
    assert last.flatten().tolist() == [0.75, 0.25]
    assert first.sum() == pytest.approx(0.75 + 0.25 / 2)


def test_downsampling_of_odd_maps():
    """Of a map of 3 x 5 the last row and the last column have no second half."""
    shares = torch.tensor([[[4.0, 4.0, 2.0], [2.0, 2.0, 1.0]]])
    undone = deformable._undo_downsampling(
        shares, layer('stages.0.x', (3, 5), None, torch.ones(1, 1, 1, 1)), 1
    )
    assert undone.tolist() == [torch.ones(3, 5).tolist()]


def test_scores_of_a_network(monkeypatch):
    """Against attention matrices that are multiplied out, in chunks and at once."""
    torch.manual_seed(0)
    model = DAT(ARCH, img_size=64, block_patterns=('LS', 'LS', 'DD', 'LD'), key_strides=(1, 1, 2, 1)).eval()
    with torch.no_grad():
        layers = deformable_layers(model, torch.rand(2, 3, 72, 100))
        scores = propagate_scores(layers, torch.ones(3, 4))
        assert [layer.map_size for layer in layers] == [(5, 7), (5, 7), (3, 4)]
        first, second, last = (layer.attn.attention_weights(layer.x).double() for layer in layers)
    assert [layer.name for layer in last_of_each_stage(layers)] == [layers[1].name, layers[2].name]
    np_last = last.mean(dim=2) / 8  # eight heads, of four groups
    torch.testing.assert_close(scores[2].flatten(2), np_last.unflatten(1, (4, 2)).sum(dim=2))

    def pixels(layer, scores):
        # the interpolation as a matrix, from the unit vectors of all pixels
        height, width = layer.map_size
        eye = torch.eye(height * width, dtype=torch.float64).view(-1, height, width, 1)
        total = 0
        for g in range(scores.shape[1]):
            points = layer.locations()[:, g].flatten(1, 2).double()
            for b in range(len(points)):
                matrix = layer.attn.sample(eye, points[b].expand(len(eye), 1, -1, 2))[..., 0]
                share = matrix @ scores[b, g].flatten()
                total = total + nn.functional.one_hot(torch.tensor(b), len(points))[:, None] * share
        return total.unflatten(-1, (height, width))

    with torch.no_grad():
        shares = pixels(layers[2], scores[2])
        down = torch.zeros(2, 5, 7, dtype=torch.float64)
        for y in range(5):
            for x in range(7):
                count = (2 if y < 4 else 1) * (2 if x < 6 else 1)
                down[:, y, x] = shares[:, y // 2, x // 2] / count
        expected = torch.einsum('bq,bmqk->bmk', down.flatten(1), second) / 4
        torch.testing.assert_close(scores[1].flatten(2), expected.unflatten(1, (2, 2)).sum(dim=2))
        shares = pixels(layers[1], scores[1])
        expected = torch.einsum('bq,bmqk->bmk', shares.flatten(1), first) / 4
        torch.testing.assert_close(scores[0].flatten(2), expected.unflatten(1, (2, 2)).sum(dim=2))
        monkeypatch.setattr(deformable, '_MAX_WEIGHTS', 1000)
        for score, chunked in zip(scores, propagate_scores(layers, torch.ones(3, 4))):
            torch.testing.assert_close(chunked, score)


def test_models_with_nothing_to_look_at():
    with pytest.raises(UserError, match='Linear has no DAT backbone'):
        find_dat(nn.Linear(1, 1))
    with pytest.raises(
        UserError, match=r'no deformable attention to look at: none of its blocks, LS, .* is a D'
    ):
        find_dat(DAT(ARCH, img_size=64, block_patterns=('LS', 'LS', 'LS', 'LS')))
