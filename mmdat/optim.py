"""Layer-wise learning rate decay for detectors and segmentors; mmpretrain has one for classifiers alone."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Smaller learning rates the nearer a layer of the backbone is to the image.

    With `layer_decay_rate` `r`, parameters of depth `d` of `n` learn at `r ** (n - 1 - d)` of the rate that
    they would have else. Depths are those of the backbone's `get_layer_depth`, which `mmdat.DAT` and
    mmpretrain's transformers have. What is outside the backbone, such as necks and heads, learns at the full
    rate.

    Args:
        optim_wrapper_cfg: As in MMEngine.
        paramwise_cfg: `layer_decay_rate` in (0, 1], and everything that MMEngine's default constructor takes:
            `norm_decay_mult`, `custom_keys` with `lr_mult` and `decay_mult`, and so on.

    Raises:
        ValueError: If `layer_decay_rate` is missing or out of range, or no part of the model has
            `get_layer_depth`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg needs layer_decay_rate in (0, 1], got {rate!r}')
        self.decay_rate = rate

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **options) -> None:
        """Adds the groups of all parameters as MMEngine's constructor does, and scales their rates."""
        super().add_params(params, module, prefix, **options)
        if prefix:  # a part, of which the groups are scaled with those of the whole model
            return
        backbones = {
            name: part.get_layer_depth
            for name, part in module.named_modules()
            if name and hasattr(part, 'get_layer_depth')
        }
        if not backbones:
            raise ValueError(f'no part of {type(module).__name__} has get_layer_depth, as mmdat.DAT has')
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            for backbone, get_layer_depth in backbones.items():
                if names[parameter].startswith(f'{backbone}.'):
                    depth, num_depths = get_layer_depth(names[parameter], f'{backbone}.')
                    rate = group.get('lr', self.base_lr)
                    group['lr'] = rate * self.decay_rate ** (num_depths - 1 - depth)
