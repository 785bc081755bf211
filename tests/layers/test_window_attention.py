import pytest
import torch

from mmdat.layers.window_attention import (
    WindowAttention,
    shifted_window_mask,
    window_partition,
    window_reverse,
)


def test_partition_and_reverse():
    x = torch.arange(2 * 6 * 9 * 5).view(2, 6, 9, 5)
    windows = window_partition(x, 3)
    assert windows.shape == (2, 6, 9, 5)
    torch.testing.assert_close(windows[1, 4], x[1, 3:6, 3:6].reshape(9, 5))
    torch.testing.assert_close(window_reverse(windows, 6, 9), x)


@pytest.mark.parametrize('shifted', [False, True])
def test_a_window_does_not_see_another(shifted):
    """Perturbing a position changes exactly the positions of its window (and region)."""
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, window_size=4, shifted=shifted).double()
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    perturbed = x.clone()
    perturbed[0, 1, 1] += 1
    changed = (layer(x) - layer(perturbed)).abs().sum(-1)[0] > 1e-12
    expected = torch.zeros(8, 8, dtype=torch.bool)
    # shifted by 2, the windows start at rows -2, 2, 6: the first region holds rows and columns 0, 1
    size = 2 if shifted else 4
    expected[:size, :size] = True
    assert torch.equal(changed, expected)


def test_shift_is_half_the_window_rounded_up():
    assert WindowAttention(8, 2, window_size=7, shifted=True).shift == 4


def test_mask_of_a_map_of_one_window_is_not_trivial():
    mask = shifted_window_mask(4, 4, 4, 2, torch.zeros(()))
    assert mask.shape == (1, 16, 16)
    assert mask[0, 0, 0] == 0
    assert mask[0, 0, 15] == -100


def test_padding_equals_a_map_that_was_padded_before():
    layer = WindowAttention(8, 2, window_size=4, shifted=True)
    x = torch.randn(2, 5, 7, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 3))
    torch.testing.assert_close(layer(x), layer(padded)[:, :5, :7])
