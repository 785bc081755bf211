"""Casts of several tensors by one kernel."""

import torch

from mmdat.ops.fused.kernel import _Cast, autocast_weights


def test_casts_have_the_derivatives_of_single_ones():
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((3, 4), (4,))]

    def derivatives(casted: list[torch.Tensor]) -> list[torch.Tensor]:
        loss = sum((t.float() ** 3).sum() for t in casted)
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), tensors)
        return [*casted, *first, *second]

    ours = derivatives(_Cast.apply(torch.bfloat16, *tensors))
    expected = derivatives([t.to(torch.bfloat16) for t in tensors])
    for result, value in zip(ours, expected, strict=True):
        assert result.dtype == value.dtype
        assert torch.equal(result, value)


def test_weights_are_left_alone_on_cpus():
    weights = torch.randn(3, 4), torch.randn(4)
    with torch.autocast('cpu', torch.bfloat16):
        assert autocast_weights(torch.randn(2, 4), *weights) == weights
