"""What kind of model weights are of, told by their names, and which configs have such a model."""

import os.path as osp
from collections.abc import Iterable
from glob import glob
from typing import NamedTuple

from .contents import Weights
from .errors import CheckpointError, join_names
from .identity import name_arch

_CONFIGS = osp.join(osp.dirname(osp.dirname(__file__)), '.mim', 'configs')


class Kind(NamedTuple):
    """How names of weights begin in a kind of model, what it is called, and the folder of its configs."""

    prefix: str
    title: str
    folder: str | None = None


# The special before the general.
_KINDS = (
    Kind('roi_head.bbox_head.0.', 'Cascade R-CNN', 'cascade_mask_rcnn'),
    Kind('roi_head.', 'Mask R-CNN or another detector of two stages', 'mask_rcnn'),
    Kind('bbox_head.retina_', 'RetinaNet', 'retinanet'),
    Kind('bbox_head.', 'a detector'),
    Kind('decode_head.psp_modules.', 'UperNet', 'upernet'),
    Kind('decode_head.scale_heads.', 'Semantic FPN', 'semantic_fpn'),
    Kind('decode_head.', 'a segmentor'),
    Kind('head.', 'a classifier', 'imagenet'),
    Kind('backbone.', 'a backbone without heads'),
)


def find_kind(names: Iterable[str]) -> Kind | None:
    """The kind of model with these weights, by our names."""
    names = list(names)
    return next((kind for kind in _KINDS if any(name.startswith(kind.prefix) for name in names)), None)


def check_kind(weights: Weights, target: Iterable[str], has_dat: bool) -> None:
    """Compares what a file is of with the model, before single weights are.

    Args:
        weights: Of the file.
        target: Names of the model's weights.
        has_dat: Whether the model has a DAT.

    Raises:
        CheckpointError: If it is another kind of model, or without DAT where the model has one; names the
            configs that would fit.
    """
    if has_dat and not weights.identity:
        raise CheckpointError(
            f'{weights.source} holds no DAT, but {join_names(weights.state_dict, 5)}, where the model has '
            'one: it needs the config with which it was trained'
        )
    found, expected = find_kind(weights.state_dict), find_kind(target)
    if found is None or expected is None or found == expected:
        return
    message = f'{weights.source} holds {found.title}, but the model is {expected.title}'
    if found.prefix == 'backbone.':
        message += '; a training can start from it, by init_cfg, but there is nothing to predict with'
    elif configs := _fitting_configs(found, weights):
        message += f'; it fits {join_names(configs, 3)}'
    raise CheckpointError(message)


def _fitting_configs(kind: Kind, weights: Weights) -> list[str]:
    """Paths of configs with such a model and a DAT of the file's arch, the folder where there is none."""
    if not weights.identity or kind.folder is None:
        return []
    folder = f'configs/{kind.folder}'
    arch = name_arch(weights.identity)
    if arch is None:
        return [f'a config of {folder} with its own backbone']
    generation, size = arch.split('_') if '_' in arch else ('', arch)
    stem = '_'.join(filter(None, ('dat', generation, size[0])))
    names = sorted(osp.basename(path) for path in glob(osp.join(_CONFIGS, kind.folder, f'{stem}_*.py')))
    return [f'{folder}/{name}' for name in names] or [folder]
