"""Operators that PyTorch does not know from inside, on fake CUDA tensors: this project's, and MMCV's."""

import os
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ...ops.deformable import sampling
from ...ops.deformable.backends import BACKENDS
from ...ops.deformable.backends import triton as attention
from ...ops.deformable.inputs import Inputs
from ...ops.triton import card
from .counting import Census


def follow_own_operators(census: Census) -> None:
    """Lets a census count what the operators of deformable attention do inside, in this process for good."""
    _act_as_card(census)
    for name, backend in BACKENDS.items():

        def forward(args: tuple, outs: tuple, backend=backend) -> None:
            backend.forward(Inputs(*args), *outs)

        def backward(args: tuple, grads: tuple, backend=backend) -> None:
            grad_out, out, lse, *inputs = args
            backend.backward(Inputs(*inputs), grad_out.to(out.dtype), out, lse, grads)

        census.followed[getattr(torch.ops.mmdat, f'deformable_attention_{name}')] = forward
        census.followed[getattr(torch.ops.mmdat, f'deformable_attention_{name}_backward')] = backward

    def sample(args: tuple, out: Tensor) -> None:
        sampling.TritonSampling().forward(sampling.SampledInputs(*args), out)

    def sample_backward(args: tuple, grads: tuple) -> None:
        grad_out, *inputs = args
        sampling.TritonSampling().backward(sampling.SampledInputs(*inputs), grad_out, grads)

    census.followed[torch.ops.mmdat.sample_features_triton] = sample
    census.followed[torch.ops.mmdat.sample_features_triton_backward] = sample_backward


def _act_as_card(census: Census, capability: tuple[int, int] = (9, 0)) -> None:
    """Serves Triton's kernels without a card, and counts each where it would be launched."""
    from triton.runtime.jit import JITFunction

    card.capability = lambda device: capability
    attention.obstacle = sampling.obstacle = lambda *args: None
    os.environ['MMDAT_AUTOTUNE'] = '0'
    torch.cuda.get_device_name = lambda *args: 'no card'
    torch.cuda.device_of = nullcontext

    def launch(kernel: JITFunction, *args: Any, grid: tuple, warmup: bool, **options: Any) -> None:
        census.launch(kernel.fn.__name__, [arg for arg in args if isinstance(arg, Tensor)], [])

    JITFunction.run = launch


def follow_mmcv(census: Census) -> None:
    """Lets a census count MMCV's compiled operators, in this process for good."""

    def fills(*written: int):
        """A kernel that fills these arguments."""

        def function(*tensors: Tensor, **settings: Any) -> None:
            census.launch('mmcv', tensors, [tensors[i] for i in written])

        return function

    def suppress(boxes: Tensor, scores: Tensor, **settings: Any) -> Tensor:
        """Boxes are sorted, each pair is compared, and the host reads how many stay: here all."""
        count = len(boxes)
        order = scores.sort(descending=True)[1]
        census.launch('mmcv', [boxes, order], [boxes.new_empty(count, -(-count // 64), dtype=torch.int64)])
        return order[torch.ones_like(scores, dtype=torch.bool)]

    functions = {
        'roi_align': dict(roi_align_forward=fills(2), roi_align_backward=fills(4)),
        'focal_loss': dict(sigmoid_focal_loss_forward=fills(3), sigmoid_focal_loss_backward=fills(3)),
        'nms': dict(nms=suppress),
    }
    for name, compiled in functions.items():
        import_module(f'mmcv.ops.{name}').ext_module = SimpleNamespace(**compiled)
    # what the host makes of numbers that it has copied
    FakeTensor.numpy = lambda self: np.zeros(self.shape, str(self.dtype).removeprefix('torch.'))
