"""Training steps on a GPU that is not there: tensors without numbers that behave as CUDA's do.

PyTorch's fake tensors say that they are on CUDA, and need no driver for it. But their backward pass looks for
the card's streams, autocast switches itself off, and fused attention is not chosen. What puts this right
holds for the whole process and cannot be undone, so a census has a process of its own (`processes.py`).
"""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device('cuda', 0)
_ATEN = torch.ops.aten
_CPU = torch.device('cpu')


@cache
def prepare_process() -> None:
    """Makes fake CUDA tensors of this process differentiable, and autocast and attention those of CUDA."""
    # With another accelerator PyTorch's engine, which knows one at a time, looks for no streams of CUDA.
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend('fake_accelerator')
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    fake_tensor.init_gpu_context = lambda device: None
    FakeTensor.__deepcopy__ = _copy
    library = torch.library.Library('aten', 'IMPL')
    library.impl('scaled_dot_product_attention', _attend, 'AutogradCUDA')
    library.impl('cudnn_grid_sampler', _cudnn_grid_sampler, 'Meta')
    library.impl('cudnn_grid_sampler_backward', _cudnn_grid_sampler_backward, 'Meta')
    prepare_process.library = library  # which unregisters itself when nobody holds it


class FakeCuda(TorchDispatchMode):
    """Inside, `device='cuda'` gives tensors without numbers that can be differentiated.

    Only after `prepare_process`. Answers the engine's question for a tensor's device by "CPU": the engine
    then runs without streams, and what its formulas make is made on CUDA all the same.
    """

    def __init__(self):
        super().__init__()
        self.fake_mode = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)

    def __enter__(self):
        self.fake_mode.__enter__()
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self.fake_mode.__exit__(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_engine = called_by_engine()
        if func is torch.ops.prim.device.default:
            return _CPU if by_engine else func(*args)
        if by_engine:
            if func is _ATEN._to_copy.default and _only_moves(args[0], kwargs):
                return args[0]
            kwargs = tree_map_only(torch.device, lambda device: DEVICE, kwargs)
        return self.compute(func, args, kwargs)

    def compute(self, func, args: tuple, kwargs: dict) -> Any:
        """An operator, for subclasses that follow the operators."""
        if func is _ATEN._to_copy.default and args[0].device != DEVICE == kwargs.get('device'):
            # a tensor with numbers would be looked at, where it lies, and copied to a card
            x, dtype = args[0], kwargs.get('dtype') or args[0].dtype
            return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=DEVICE)
        return func(*args, **kwargs)


def _copy(x: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy. PyTorch's own copies the mode that the tensor belongs to, and with it memory that is not
    there."""
    if id(x) not in memo:
        with torch.no_grad():
            memo[id(x)] = x.clone().requires_grad_(x.requires_grad)
    return memo[id(x)]


def called_by_engine() -> bool:
    """Whether PyTorch's engine or one of its formulas called the function that asks, not Python."""
    try:
        return sys._getframe(2).f_code.co_name == '_engine_run_backward'
    except ValueError:  # a thread of the engine
        return True


def _only_moves(x: Tensor, kwargs: dict) -> bool:
    """Whether a copy has no reason but the device that the engine was told."""
    return x.ndim == 0 and 'device' in kwargs and kwargs.get('dtype') in (None, x.dtype)


def _cudnn_grid_sampler(x: Tensor, grid: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], *grid.shape[1:3])


def _cudnn_grid_sampler_backward(x: Tensor, grid: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(grid)


def _attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> Tensor:
    """`scaled_dot_product_attention` as PyTorch computes it on a card from sm_80 on.

    FlashAttention serves half precision without a mask, the memory-efficient kernel masks and float32, where
    rows are contiguous and aligned; else there are plain products. (`aten/src/ATen/native/transformers`.)
    """
    half = q.dtype in (torch.float16, torch.bfloat16)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    fused = (
        q.ndim == k.ndim == v.ndim == 4
        and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        and q.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and min(*q.shape, *k.shape) > 0
        and not enable_gqa
    )
    if fused and half and attn_mask is None and q.shape[-1] <= 256 and q.shape[-1] == v.shape[-1]:
        padding = -q.shape[-1] % 8
        if padding:
            q, k, v = (torch.nn.functional.pad(t, (0, padding)) for t in (q, k, v))
        out = _ATEN._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
        return out[..., : out.shape[-1] - padding]
    if fused and q.shape[-1] % (8 if half else 4) == 0 and v.shape[-1] % (8 if half else 4) == 0:
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -torch.inf)
            attn_mask = _aligned(attn_mask).expand(*q.shape[:3], k.shape[2])
        needs_lse = torch.is_grad_enabled() and any(
            t.requires_grad for t in (q, k, v, attn_mask) if t is not None
        )
        return _ATEN._scaled_dot_product_efficient_attention(
            q, k, v, attn_mask, needs_lse, dropout_p, is_causal, scale=scale
        )[0]
    return _ATEN._scaled_dot_product_attention_math(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]


def _aligned(mask: Tensor, alignment: int = 16) -> Tensor:
    """A mask whose rows start at multiples of `alignment` numbers, as the memory-efficient kernel needs."""
    if mask.stride(-1) == 1 and all(stride % alignment == 0 for stride in mask.stride()[:-1]):
        return mask
    size = mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, alignment - size % alignment))[..., :size]
