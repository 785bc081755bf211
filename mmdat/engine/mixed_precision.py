"""Training in mixed precision: which dtype, and which optimizer wrapper of MMEngine does it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..registry import OPTIM_WRAPPERS
from .errors import PreflightError

AMP_DTYPES = ('float16', 'bfloat16')
_BFLOAT16 = 'mmdat.BFloat16OptimWrapper'
# Wrappers that differ in their precision alone, so that one may take another's place.
_REPLACEABLE = (None, 'OptimWrapper', 'AmpOptimWrapper', _BFLOAT16)
_OF_AMP = ('dtype', 'loss_scale', 'use_fsdp')


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes under autocast in bfloat16, on GPUs and on CPUs.

    MMEngine's `AmpOptimWrapper` runs on GPUs only, and always scales the loss. bfloat16 has the range of
    float32, so no gradient is lost without a scale. Boxes stay in float32, see `keep_boxes_in_float32`.
    """

    _prepared: nn.Module | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        if model is not self._prepared:
            keep_boxes_in_float32(model)
            self._prepared = model
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def keep_boxes_in_float32(model: nn.Module) -> None:
    """Lets boxes of mmdet's detectors be predicted and looked up in float32, whatever the rest computes in.

    mmdet rounds regions to the dtype of the maps, in bfloat16 by up to 2 pixels near 1000. And mmcv's
    RoIAlign and non-maximum suppression know no bfloat16, on CPUs not even float16.
    """
    if 'mmdet' not in sys.modules:
        return
    from mmdet.models import BaseRoIExtractor
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    for module in model.modules():
        if isinstance(module, BaseDenseHead):
            module.register_forward_hook(lambda module, args, output: _to_float32(output))
        elif isinstance(module, BaseRoIExtractor):
            module.register_forward_pre_hook(
                lambda module, args, kwargs: _to_float32((args, kwargs)), with_kwargs=True
            )


def _to_float32(data: Any) -> Any:
    return apply_to(data, lambda x: isinstance(x, Tensor) and x.is_floating_point(), Tensor.float)


def enable_amp(cfg: Config, dtype: str = 'auto') -> None:
    """Lets a training run in mixed precision, which weights and gradients of weights are not part of.

    Args:
        cfg: Its `optim_wrapper` is changed in place.
        dtype: `'float16' | 'bfloat16' | 'auto'`, bfloat16 on CPUs and on GPUs that compute in it, and float16
            on others. The loss is scaled for float16 only, dynamically unless the config says else.

    Raises:
        PreflightError: For float16 without a GPU, or if the config has a wrapper with a precision of its own.
    """
    on_gpu = torch.cuda.is_available()
    if dtype == 'auto':
        native = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if native else 'float16'
    if dtype == 'float16' and not on_gpu:
        raise PreflightError('--amp float16 needs a GPU: on CPUs take --amp, which is bfloat16 there')
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') not in _REPLACEABLE:
        raise PreflightError(
            f'--amp does not go with optim_wrapper.type={wrapper.type!r}, which has settings of its own for '
            'the precision: run without --amp'
        )
    if dtype == 'float16':
        wrapper.update(type='AmpOptimWrapper', dtype=dtype, loss_scale=wrapper.get('loss_scale', 'dynamic'))
        return
    for name in _OF_AMP:
        wrapper.pop(name, None)
    wrapper.type = _BFLOAT16


def check_amp(cfg: Config) -> None:
    """Refuses MMEngine's wrapper where it does not run.

    Raises:
        PreflightError: For an `AmpOptimWrapper` without a GPU.
    """
    if 'Amp' in str(cfg.optim_wrapper.get('type')) and not torch.cuda.is_available():
        raise PreflightError(
            'optim_wrapper.type=AmpOptimWrapper needs a GPU: --amp trains in bfloat16 on CPUs, '
            'optim_wrapper.type=OptimWrapper in float32'
        )


def describe_precision(cfg: Config) -> str:
    """The dtypes of a training, for its summary."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') == _BFLOAT16:
        return 'bfloat16, mixed with float32'
    if 'Amp' in str(wrapper.get('type')):
        scale = wrapper.get('loss_scale', 'dynamic')
        scale = 'dynamic loss scale' if scale == 'dynamic' else f'loss scale {scale}'
        return f'{wrapper.get("dtype") or "float16"}, mixed with float32, {scale}'
    strategy = cfg.get('strategy') or {}
    own = [name for name in ('bf16', 'fp16') if (strategy.get(name) or {}).get('enabled')]
    return f'{own[0]} of {strategy.type}' if own else 'float32'
