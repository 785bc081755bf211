"""The architecture of a backbone, read off its weights."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

# What gives the attention of a block away. Shifted windows have the names of others.
_BLOCKS = {
    'attn.relative_position_bias_table': 'L',
    'attn.relative_bias': 'N',
    'attn.offset.conv.weight': 'D',
    'attn.kv.weight': 'P',
    'attn.weight.weight': 'Q',
}


def derive_architecture(backbone: Mapping[str, Tensor], derived: Iterable[str]) -> dict:
    """Channels, depths and kinds of blocks.

    Args:
        backbone: Weights by our names.
        derived: The buffers of the authors' file. Only they tell shifted windows from others, by a mask.

    Returns:
        `embed_dims`, `depths` and, if they are all known, `blocks`, as in `DAT.identity`.
    """
    if 'stages.0.blocks.0.norm1.weight' not in backbone:
        return {}
    masks = (re.search(r'stages\.(\d)\.attns\.(\d+)\.attn_mask', key) for key in derived)
    masked = {(int(match[1]), int(match[2])) for match in masks if match}
    stages = [
        ''.join('S' if (i, j) in masked else letter for j, letter in enumerate(letters))
        for i, letters in enumerate(_letters(backbone))
    ]
    architecture = dict(
        embed_dims=len(backbone['stages.0.blocks.0.norm1.weight']), depths=tuple(map(len, stages))
    )
    if '?' not in ''.join(stages) and (masked or 'L' not in ''.join(stages)):
        architecture['blocks'] = tuple(stages)
    return architecture


def derive_settings(backbone: Mapping[str, Tensor], identity: Mapping[str, Any]) -> dict:
    """Settings of a `DAT` that the weights fit, though it may differ in what leaves no trace in them.

    Args:
        backbone: Weights by our names, of all four stages.
        identity: What is known besides.
    """

    def find(name: str) -> dict[int, Tensor]:
        """The first weight of this name in each stage that has it."""
        found: dict[int, Tensor] = {}
        for key, value in backbone.items():
            match = re.fullmatch(rf'stages\.(\d)\.blocks\.\d+\.{name}', key)
            if match:
                found.setdefault(int(match[1]), value)
        return found

    stages = range(len(identity['depths']))
    dims = [identity['embed_dims'] * 2**i for i in stages]
    windows, neighborhoods = find(r'attn\.relative_position_bias_table'), find(r'attn\.relative_bias')
    tables, offsets = find(r'attn\.position_bias_table'), find(r'attn\.offset\.conv\.weight')
    reductions = find(r'attn\.reduction\.projection\.weight')

    groups = [dims[i] // len(offsets[i]) if i in offsets else 1 for i in stages]
    heads = {i: table.shape[1] for i, table in windows.items()}
    heads |= {i: len(table) for i, table in [*neighborhoods.items(), *tables.items()]}
    first = min(tables, default=None)
    has_fixed_bias = any(side % 2 == 0 for table in tables.values() for side in table.shape[1:])
    sides = {
        i: math.isqrt(table.shape[1]) if has_fixed_bias else (table.shape[1] + 1) // 2
        for i, table in tables.items()
    }
    strides = {i: weight.shape[-1] for i, weight in reductions.items()}
    if has_fixed_bias:
        strides |= {i: round(sides[i] / math.isqrt(table.shape[2])) for i, table in tables.items()}

    settings = dict(
        arch=dict(
            generation=identity['generation'],
            embed_dims=identity['embed_dims'],
            depths=identity['depths'],
            num_heads=identity.get('num_heads') or tuple(heads.get(i, groups[i]) for i in stages),
            offset_groups=identity.get('offset_groups') or tuple(groups),
        ),
        img_size=224 if first is None else sides[first] * 2 ** (first + 2),
        in_channels=backbone['patch_embed.projection.weight'].shape[1],
        mlp_ratio=len(find(r'mlp\.fc1\.weight')[0]) / dims[0],
        block_patterns=identity.get('blocks') or _letters(backbone),
        key_strides=tuple(strides.get(i, 1) for i in stages),
        offset_kernel_sizes=tuple(offsets[i].shape[-1] if i in offsets else 3 for i in stages),
        overlap_patches=backbone['patch_embed.projection.weight'].shape[-1] != 4,
        lpu=bool(find(r'lpu\.weight')),
        conv_mlp=bool(find(r'mlp\.conv\.weight')),
        out_indices=tuple(i for i in stages if f'norm{i}.weight' in backbone),
    )
    if windows:
        settings['window_size'] = (math.isqrt(len(next(iter(windows.values())))) + 1) // 2
    if neighborhoods:
        settings['neighborhood_size'] = (next(iter(neighborhoods.values())).shape[1] + 1) // 2
    if find(r'attn\.position_bias_conv\.weight'):
        settings['pos_bias'] = 'dwconv'
    elif has_fixed_bias:
        settings['pos_bias'] = 'fixed'
    else:
        settings['pos_bias'] = 'relative' if tables else None
    return settings


def _letters(backbone: Mapping[str, Tensor]) -> list[str]:
    """The attention of each block of each stage, `?` where unknown."""
    stages: dict[int, dict[int, str]] = {}
    for key in backbone:
        if match := re.match(r'stages\.(\d)\.blocks\.(\d+)\.(.+)', key):
            blocks = stages.setdefault(int(match[1]), {})
            block = int(match[2])
            blocks[block] = _BLOCKS.get(match[3]) or blocks.get(block, '?')
    return [''.join(stages[i][j] for j in sorted(stages[i])) for i in sorted(stages)]
