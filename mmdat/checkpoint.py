"""Weights: the authors' key names, bias tables of other sizes, and loading without silent losses."""

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

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
_DERIVED_BUFFERS = ('relative_position_index', 'attn_mask')


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
        if key.endswith(_DERIVED_BUFFERS):
            continue
        name = _rename(key)
        if name is None:
            unknown.append(key)
        else:
            is_1x1_conv = value.ndim == 4 and value.shape[2:] == (1, 1)
            renamed[name] = value.flatten(1) if is_1x1_conv else value
    if unknown:
        raise ValueError(f'not keys of a released DAT: {_join(unknown)}')
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


def resize_bias_tables(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Interpolates position bias tables to another window or image size, as the authors do (bicubic).

    Args:
        state_dict: Weights to load.
        target: State dict of the model, whose tables give the sizes.

    Returns:
        The weights, with tables of the target's sizes, and a line for each table that was resized.
    """
    resized, report = dict(state_dict), []
    for key, table in state_dict.items():
        if not key.endswith('position_bias_table') or key not in target:
            continue
        shape = target[key].shape
        if table.shape == shape or table.ndim != len(shape):
            continue
        if table.ndim == 2:  # windows: (side ** 2, M)
            old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
            maps = table.T.reshape(1, -1, old, old)
            maps = F.interpolate(maps, (new, new), mode='bicubic', align_corners=False)
            resized[key] = maps.flatten(2)[0].T.contiguous()
        else:  # deformable attention: (M, rows, columns)
            maps = F.interpolate(table[None], shape[1:], mode='bicubic', align_corners=False)
            resized[key] = maps[0]
        report.append(f'{key}: {tuple(table.shape)} -> {tuple(shape)}')
    return resized, report


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Loads a file into a backbone; what does not fit is an error.

    Takes the authors' classifier files, and files of MMEngine that hold a bare backbone or a model with
    one. Bias tables of other sizes are resized. Only these differences are in order, and logged: output
    norms that a classifier does not have (they keep their initial values), and weights of stages and
    norms that this backbone's `out_indices` do not build.

    Args:
        backbone: A `DAT`.
        checkpoint: Path, or an address that MMEngine's `CheckpointLoader` understands.
        prefix: Where the backbone is in the file's model. By default `backbone.`, or the root if no
            key starts so.

    Raises:
        ValueError: If keys are missing, unexpected or of another shape; names them.
    """
    # here, because it needs OpenCV, which the bare backbone does without
    from mmengine.runner.checkpoint import CheckpointLoader

    content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='current')
    state_dict = content.get('state_dict', content.get('model', content))
    state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    if 'patch_proj.0.weight' in state_dict:
        state_dict = from_official(state_dict)
    if prefix is None:
        prefix = 'backbone.' if any(key.startswith('backbone.') for key in state_dict) else ''
    elif not prefix.endswith('.'):
        prefix += '.'
    state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}

    target = backbone.state_dict()
    state_dict, resized = resize_bias_tables(state_dict, target)
    built = {f'stages.{i}.' for i in range(len(backbone.stages))}
    unbuilt = [
        key
        for key in state_dict
        if key not in target and re.match(r'stages\.\d\.|norm\d\.', key) and key[:9] not in built
    ]
    for key in unbuilt:
        del state_dict[key]
    initial = [key for key in target if re.match(r'norm\d\.', key) and key not in state_dict]
    kept = {key: target[key] for key in initial}
    if mismatch := describe_mismatch(kept | state_dict, target):
        raise ValueError(f'{checkpoint} does not fit the backbone: {mismatch}')
    backbone.load_state_dict(kept | state_dict)
    for what, keys in (
        ('resized', resized),
        ('not built, so not loaded', unbuilt),
        ('not in the file, so left as initialised', initial),
    ):
        if keys:
            print_log(f'{checkpoint}: {what}: {_join(keys)}', logger='current')


def describe_mismatch(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str | None:
    """Names the keys that are missing, unexpected or of another shape; `None` if all fit."""
    missing = [key for key in target if key not in state_dict]
    unexpected = [key for key in state_dict if key not in target]
    shapes = [
        f'{key} {tuple(value.shape)} instead of {tuple(target[key].shape)}'
        for key, value in state_dict.items()
        if key in target and value.shape != target[key].shape
    ]
    parts = [
        f'{len(keys)} {what}: {_join(keys)}'
        for what, keys in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', shapes),
        )
        if keys
    ]
    return '; '.join(parts) or None


def _join(names: list[str], most: int = 20) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
