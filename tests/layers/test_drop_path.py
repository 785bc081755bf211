import pytest
import torch

from mmdat.layers import DropPath


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_images_are_dropped_as_a_whole_and_the_others_scaled(dtype):
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2, dtype=dtype, requires_grad=True)
    out = DropPath(0.2)(x)
    assert out.dtype == dtype
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert set(out.unique().tolist()) == {0, torch.tensor(1.25, dtype=dtype).item()}
    assert out.float().mean().item() == pytest.approx(1, abs=0.04)  # five standard deviations
    out.sum().backward()
    assert torch.equal(x.grad, out)


def test_other_images_are_dropped_each_time():
    torch.manual_seed(0)
    drop_path, x = DropPath(0.5), torch.ones(50, 1)
    assert not torch.equal(drop_path(x), drop_path(x))


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(5, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x
