import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmdat.layers import WindowAttention
from mmdat.ops.native import chunks, window_kernel
from mmdat.ops.native.windows import window_positions
from mmdat.ops.windows import attend_in_windows, shift_masks, window_kinds, window_partition, window_reverse


def test_partition_and_reverse():
    x = torch.arange(2 * 6 * 9 * 5).view(2, 6, 9, 5)
    windows = window_partition(x, 3)
    assert windows.shape == (2, 6, 9, 5)
    torch.testing.assert_close(windows[1, 4], x[1, 3:6, 3:6].reshape(9, 5))
    torch.testing.assert_close(window_reverse(windows, 3, 6, 9), x)


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
    mask = shift_masks(4, 2)[window_kinds(1, 1)]
    assert mask.shape == (1, 16, 16)
    assert mask[0, 0, 0] == 0
    assert mask[0, 0, 15] == -100


@pytest.mark.parametrize(('size', 'shift'), [(4, 2), (7, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (1, 3), (3, 2)])
def test_masks_keep_the_nine_regions_of_swin_apart(size, shift, rows, columns):
    regions = torch.zeros(rows * size, columns * size)
    for i, y in enumerate((slice(-size, -shift), slice(-shift, None))):
        for j, x in enumerate((slice(-size, -shift), slice(-shift, None))):
            regions[y] += (i + 1) * (j == 0)
            regions[:, x] += 3 * (j + 1) * (i == 0)
    regions = window_partition(regions[None, ..., None], size)[0, :, :, 0]
    apart = regions[:, None] != regions[:, :, None]
    masks = shift_masks(size, shift)[window_kinds(rows, columns)]
    torch.testing.assert_close(masks, apart * -100.0)


def plain(layer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Other devices' way."""
    bias = layer.relative_position_bias()
    masks, size = layer.shift_masks, layer.window_size
    return attend_in_windows(x, layer.qkv, layer.proj, bias, masks, size, layer.shift)


def outputs_and_gradients(function, layer: WindowAttention, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = function(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [y, x.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize('numbers_of_a_chunk', [1, chunks.CACHED_NUMBERS])
@pytest.mark.parametrize(('dtype', 'floor'), [(torch.float32, 4e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize(
    ('size', 'channels', 'heads', 'window'),
    [((7, 7), 64, 2, 7), ((9, 30), 96, 3, 7), ((3, 2), 32, 1, 4), ((26, 13), 32, 1, 12), ((9, 9), 48, 2, 3)],
)
def test_chunks_are_as_exact_as_the_plain_formula(
    size, channels, heads, window, shifted, dtype, floor, numbers_of_a_chunk, monkeypatch
):
    monkeypatch.setattr(chunks, 'CACHED_NUMBERS', numbers_of_a_chunk)
    torch.manual_seed(0)
    layer = WindowAttention(channels, heads, window, shifted).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, *size, channels, dtype=dtype)
    results = outputs_and_gradients(layer, layer, x)
    rounded = outputs_and_gradients(lambda x: plain(layer, x), layer, x)
    exact = outputs_and_gradients(lambda x: plain(layer, x), layer.double(), x.double())
    for result, other, value in zip(results, rounded, exact):
        scale = value.abs().max()
        allowed = 3 * (other - value).abs().max() / scale + floor
        assert (result - value).abs().max() / scale < allowed


def test_without_a_compiler_pytorch_serves(monkeypatch):
    layer = WindowAttention(64, 2, 7, shifted=True)
    x = torch.randn(1, 10, 10, 64)
    monkeypatch.setattr(window_kernel, 'load', lambda: (None, 'there is no compiler'))
    expected = outputs_and_gradients(lambda x: plain(layer, x), layer, x)
    for result, value in zip(outputs_and_gradients(layer, layer, x), expected):
        torch.testing.assert_close(result, value, atol=1e-5 * value.abs().max().item(), rtol=0)


def test_gradients_in_float64():
    layer = WindowAttention(8, 2, 2, shifted=True).double()
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(dict(layer.named_parameters()), parameters)), x)

    assert torch.autograd.gradcheck(function, (x, *parameters))


def test_positions_are_kept_for_few_sizes_only_and_right_for_all():
    layer = WindowAttention(8, 2, 4, shifted=True)
    sizes = [(h, w) for h in range(1, 9) for w in range(1, 9)]
    for _ in range(2):
        for size in sizes:
            x = torch.randn(1, *size, 8)
            torch.testing.assert_close(layer(x), plain(layer, x), atol=1e-6, rtol=1e-4)
    info = window_positions.cache_info()
    assert info.currsize <= info.maxsize == 32


def test_positions_first_used_in_inference_mode_can_train():
    window_positions.cache_clear()
    layer = WindowAttention(8, 2, 4, shifted=True)
    with torch.inference_mode():
        layer(torch.randn(1, 5, 6, 8))
    layer(torch.randn(1, 5, 6, 8)).sum().backward()
    assert layer.qkv.weight.grad.isfinite().all()


def test_the_layer_is_copied_pickled_and_shared_between_threads():
    layer = WindowAttention(64, 2, 4, shifted=True)
    x = torch.randn(8, 1, 9, 10, 64)
    expected = torch.stack([layer(x_i) for x_i in x])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x[0]), expected[0], atol=0, rtol=0)
    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(torch.stack(list(pool.map(layer, x))), expected, atol=1e-6, rtol=1e-5)


def test_hooked_and_replaced_layers_are_called():
    layer = WindowAttention(8, 2, 4)
    x = torch.randn(1, 4, 4, 8)
    handle = layer.proj.register_forward_hook(lambda module, args, out: 2 * out)
    doubled = layer(x)
    handle.remove()
    torch.testing.assert_close(doubled, 2 * layer(x))
    layer.proj = torch.nn.Sequential(layer.proj, torch.nn.Flatten(3))
    torch.testing.assert_close(layer(x), doubled / 2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('shifted', [False, True])
def test_compiled_traced_and_without_values(shifted):
    layer = WindowAttention(16, 2, 4, shifted).eval()
    x = torch.randn(1, 5, 6, 16)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x), atol=1e-6, rtol=1e-5)
    assert layer.to('meta')(x.to('meta')).shape == x.shape


def test_padding_equals_a_map_that_was_padded_before():
    layer = WindowAttention(8, 2, window_size=4, shifted=True)
    x = torch.randn(2, 5, 7, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 3))
    torch.testing.assert_close(layer(x), layer(padded)[:, :5, :7])
