"""The authors' names for weights, and ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import join_names

# Names of the released CVPR'22 classifiers, and ours.
_MODULES = {
    'patch_proj.0': 'patch_embed.projection',
    'patch_proj.1.norm': 'patch_embed.norm',
    'down_projs.0.0': 'stages.1.downsample.projection',
    'down_projs.0.1.norm': 'stages.1.downsample.norm',
    'down_projs.1.0': 'stages.2.downsample.projection',
    'down_projs.1.1.norm': 'stages.2.downsample.norm',
    'down_projs.2.0': 'stages.3.downsample.projection',
    'down_projs.2.1.norm': 'stages.3.downsample.norm',
    'cls_norm.norm': 'norm3',
}
_BLOCK_MODULES = {
    'chunk.linear1': 'mlp.fc1',
    'chunk.linear2': 'mlp.fc2',
    'proj_qkv': 'attn.qkv',
    'proj_q': 'attn.q',
    'proj_k': 'attn.k',
    'proj_v': 'attn.v',
    'proj_out': 'attn.proj',
    'conv_offset.0': 'attn.offset.conv',
    'conv_offset.1.norm': 'attn.offset.norm',
    'conv_offset.3': 'attn.offset.proj',
    'rpe_table': 'attn.position_bias_conv',
}
_TABLES = {
    'relative_position_bias_table': 'attn.relative_position_bias_table',
    'rpe_table': 'attn.position_bias_table',
}
DERIVED_BUFFERS = ('relative_position_index', 'attn_mask')


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a released CVPR'22 classifier.

    Args:
        state_dict: The authors' keys, without wrappers such as `{'model': ...}` or `module.`.

    Returns:
        The keys of an mmpretrain `ImageClassifier`: `backbone.*` (whose `norm3` is the classifier's
        final norm) and `head.fc.*`. Values are shared, not copied. 1x1 convolutions become linear
        layers; the index and mask buffers, which are derived, are left out.

    Raises:
        ValueError: If a key is not one of a CVPR'22 classifier.
    """
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        if key.endswith(DERIVED_BUFFERS):
            continue
        name = _rename(key)
        if name is None:
            unknown.append(key)
        else:
            is_1x1_conv = value.ndim == 4 and value.shape[2:] == (1, 1)
            renamed[name] = value.flatten(1) if is_1x1_conv else value
    if unknown:
        raise ValueError(f"not keys of a CVPR'22 DAT classifier: {join_names(unknown)}")
    return renamed


def _rename(key: str) -> str | None:
    module, _, parameter = key.rpartition('.')
    if module == 'cls_head':
        return f'head.fc.{parameter}'
    if module in _MODULES:
        return f'backbone.{_MODULES[module]}.{parameter}'
    match = re.fullmatch(r'stages\.(\d)\.(layer_norms|attns|mlps)\.(\d+)\.(.+)', key)
    if match is None:
        return None
    stage, kind, index, rest = match.groups()
    if kind == 'layer_norms':
        block, which = divmod(int(index), 2)
        name = f'norm{which + 1}.{parameter}' if rest == f'norm.{parameter}' else None
    elif rest in _TABLES:
        block, name = index, _TABLES[rest]
    else:
        block, name = index, _BLOCK_MODULES.get(rest.rpartition('.')[0])
        name = name and f'{name}.{parameter}'
    return name and f'backbone.stages.{stage}.blocks.{block}.{name}'
