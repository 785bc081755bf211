"""The authors' names for weights, and ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import join_names

# Names of the released models, and ours. CVPR'22 and DAT++ share most of theirs.
_MODULES = {
    'patch_proj.0': 'patch_embed.projection',
    'patch_proj.1.norm': 'patch_embed.norm',
    'patch_proj.3': 'patch_embed.downsample.projection',
    'patch_proj.4.norm': 'patch_embed.downsample.norm',
    'down_projs.0.0': 'stages.1.downsample.projection',
    'down_projs.0.1.norm': 'stages.1.downsample.norm',
    'down_projs.1.0': 'stages.2.downsample.projection',
    'down_projs.1.1.norm': 'stages.2.downsample.norm',
    'down_projs.2.0': 'stages.3.downsample.projection',
    'down_projs.2.1.norm': 'stages.3.downsample.norm',
    'cls_norm.norm': 'norm3',
    'norms.0.norm': 'norm0',
    'norms.1.norm': 'norm1',
    'norms.2.norm': 'norm2',
    'norms.3.norm': 'norm3',
}
_BLOCK_MODULES = {
    'chunk.linear1': 'mlp.fc1',
    'chunk.linear2': 'mlp.fc2',
    'linear1.0': 'mlp.fc1',
    'linear2.0': 'mlp.fc2',
    'dwc': 'mlp.conv',
    'qkv': 'attn.qkv',
    'proj_qkv': 'attn.qkv',
    'q': 'attn.q',
    'proj_q': 'attn.q',
    'proj_k': 'attn.k',
    'proj_v': 'attn.v',
    'kv': 'attn.kv',
    'proj': 'attn.proj',
    'proj_out': 'attn.proj',
    'proj_ds.0': 'attn.reduction.projection',
    'proj_ds.1.norm': 'attn.reduction.norm',
    'conv_offset.0': 'attn.offset.conv',
    'conv_offset.1.norm': 'attn.offset.norm',
    'conv_offset.3': 'attn.offset.proj',
    'rpe_table': 'attn.position_bias_conv',
}
_TABLES = {
    'relative_position_bias_table': 'attn.relative_position_bias_table',
    'rpe_table': 'attn.position_bias_table',
    'rpb': 'attn.relative_bias',
}
DERIVED_BUFFERS = ('relative_position_index', 'attn_mask')


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a released classifier or backbone, of CVPR'22 or DAT++.

    The names do not tell the generation, nor do the shapes.

    Args:
        state_dict: The authors' keys, without wrappers such as `{'model': ...}` or `module.`.

    Returns:
        The keys of an mmpretrain `ImageClassifier`: `backbone.*` (whose `norm3` is the classifier's
        final norm, or the last output norm of a dense backbone) and `head.fc.*`. Values are shared, not
        copied. 1x1 convolutions become linear layers; the index and mask buffers, which are derived,
        are left out.

    Raises:
        ValueError: If a key is not one of these models.
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
        raise ValueError(f'not keys of a released DAT: {join_names(unknown)}')
    return renamed


def _rename(key: str) -> str | None:
    module, _, parameter = key.rpartition('.')
    if module == 'cls_head':
        return f'head.fc.{parameter}'
    if module in _MODULES:
        return f'backbone.{_MODULES[module]}.{parameter}'
    match = re.fullmatch(r'stages\.(\d)\.(local_perception_units|layer_norms|attns|mlps)\.(\d+)\.(.+)', key)
    if match is None:
        return None
    stage, kind, index, rest = match.groups()
    if kind == 'layer_norms':
        block, which = divmod(int(index), 2)
        name = f'norm{which + 1}.{parameter}' if rest == f'norm.{parameter}' else None
    elif kind == 'local_perception_units':
        block, name = index, f'lpu.{rest}' if rest == parameter else None
    elif rest in _TABLES:
        block, name = index, _TABLES[rest]
    else:
        block, name = index, _BLOCK_MODULES.get(rest.rpartition('.')[0])
        name = name and f'{name}.{parameter}'
    return name and f'backbone.stages.{stage}.blocks.{block}.{name}'
