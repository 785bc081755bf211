import numpy as np
import pytest
import torch
from mmdet.models.backbones.swin import ShiftWindowMSA as DetectionMSA
from mmpretrain.models.utils import ShiftWindowMSA as ClassificationMSA
from mmseg.models.backbones.swin import ShiftWindowMSA as SegmentationMSA
from torch import nn

from mmdat.errors import UserError
from mmdat.layers import WindowAttention
from mmdat.visualization import dcn_points, window_layers, window_of

SIZE, CHANNELS = 4, 4


class OneLayer(nn.Module):
    """A network of one window attention on maps of stride 8."""

    def __init__(self, library: str, shift: int):
        super().__init__()
        if library == 'mmdat':
            self.attn = WindowAttention(CHANNELS, 1, SIZE, shifted=bool(shift))
            qkv = self.attn.qkv
        else:
            msa = dict(mmdet=DetectionMSA, mmseg=SegmentationMSA).get(library, ClassificationMSA)
            settings = dict(pad_small_map=library != 'one window') if msa is ClassificationMSA else {}
            self.attn = msa(CHANNELS, window_size=SIZE, num_heads=1, shift_size=shift, **settings)
            qkv = self.attn.w_msa.qkv
        # all queries look for what marks a position
        nn.init.zeros_(qkv.weight)
        nn.init.zeros_(qkv.bias)
        qkv.bias.data[0] = 1
        qkv.weight.data[CHANNELS, 0] = 50

    def forward(self, images):
        x = images[:, :1, ::8, ::8].permute(0, 2, 3, 1).repeat(1, 1, 1, CHANNELS)
        if isinstance(self.attn, WindowAttention):
            return self.attn(x)
        return self.attn(x.flatten(1, 2), x.shape[1:3])


@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('library', ['mmdat', 'mmdet', 'mmseg', 'mmpretrain', 'one window'])
def test_weights_point_to_the_marked_position(library, shift):
    """For every query: the marked one has all of its attention where it is visible, and none elsewhere."""
    size = (4, 8) if library == 'one window' else (6, 9)
    model = OneLayer(library, shift).eval()
    for marked in [(0, 0), (size[0] - 1, size[1] - 1), (3, 2), (1, 5)]:
        images = torch.zeros(1, 3, 8 * size[0], 8 * size[1])
        images[:, :, 8 * marked[0], 8 * marked[1]] = 1
        with torch.no_grad():
            layers = window_layers(model, images)
        assert list(layers) == [8]
        (layer,) = layers[8]
        assert (layer.map_size, layer.window_size) == (size, SIZE)
        assert layer.shift == (0 if library == 'one window' else shift)
        for query in np.ndindex(size):
            window = layer.window_of(query)
            (weights,) = layer.weights(window)
            assert window.positions[window.query].tolist() == list(query)
            assert window.visible[window.query]
            seen = [tuple(p) for p in window.positions[window.visible].tolist()]
            assert (weights.max() > 0.9) == (marked in seen), (query, marked)
            if marked in seen:
                assert tuple(window.positions[weights.argmax()].tolist()) == marked


@pytest.mark.parametrize(
    ('query', 'shift', 'box'),
    [
        ((0, 0), 0, (0, 0, 4, 4)),
        ((5, 8), 0, (4, 8, 6, 9)),  # cut off by the map's borders
        ((3, 3), 2, (2, 2, 6, 6)),
        ((0, 3), 2, (0, 2, 2, 6)),  # the shift leaves half a window at the top
        ((0, 0), 2, (0, 0, 2, 2)),
    ],
)
def test_what_a_query_sees(query, shift, box):
    assert window_of(query, (6, 9), 4, shift).box((6, 9)) == box


def test_dcn_points():
    points = dcn_points((3, 5))
    assert points.tolist() == [[y, x] for y in (2, 3, 4) for x in (4, 5, 6)]
    offsets = np.full((9, 2), (0.5, -1.0))
    np.testing.assert_allclose(dcn_points((3, 5), offsets=offsets), np.add(points, (0.5, -1)))
    assert len(dcn_points((0, 0), kernel_size=5)) == 25


def test_networks_without_windows():
    with pytest.raises(UserError, match='Linear has no window attention'):
        window_layers(nn.Linear(1, 1), torch.zeros(1, 3, 8, 8))
