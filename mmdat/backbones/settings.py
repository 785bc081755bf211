"""What the settings of `DAT` may be, and how they must fit each other."""

from collections.abc import Mapping
from typing import Any

from ..rules import Rule, integer, is_sequence, number, one_of, optional

NUM_STAGES = 4
BLOCKS = {
    'L': 'local window',
    'S': 'shifted window',
    'N': 'neighbourhood',
    'D': 'deformable',
    'P': 'spatial reduction (PVT)',
    'Q': 'points of each query (Deformable DETR)',
}
POSITION_BIASES = ('relative', 'fixed', 'dwconv', None)


def each_stage(rule: Rule) -> Rule:
    """A sequence with one entry for each stage."""

    def allows(value: Any) -> bool:
        return is_sequence(value) and len(value) == NUM_STAGES and all(map(rule.allows, value))

    return Rule(allows, f'one entry for each of the {NUM_STAGES} stages, each {rule.text}')


def _are_stages(value: Any) -> bool:
    ascending = is_sequence(value) and all(map(integer(0, NUM_STAGES - 1).allows, value))
    return ascending and len(value) > 0 and list(value) == sorted(set(value))


def _is_init_cfg(value: Any) -> bool:
    cfgs = value if is_sequence(value) else [value]
    return all(isinstance(cfg, Mapping) and 'type' in cfg for cfg in cfgs)


_WINDOW = 'memory grows with the fourth power of it'
_TABLE = 'memory grows with its square'
ARCH_RULES = {
    'embed_dims': integer(1, 1024, why='they double from stage to stage'),
    'depths': each_stage(integer(1, 512)),
    'num_heads': each_stage(integer(1)),
    'offset_groups': each_stage(integer(1)),
}
RULES = {
    'img_size': integer(1, 8192, why=_TABLE),
    'in_channels': integer(1),
    'window_size': integer(1, 64, why=_WINDOW),
    'neighborhood_size': integer(1, 63, odd=True, why=_TABLE),
    'mlp_ratio': number(lambda ratio: 0 < ratio <= 64, 'in (0, 64]'),
    'offset_kernel_sizes': each_stage(integer(1, 63, odd=True)),
    'num_points': each_stage(integer(1, 1024)),
    'pos_bias': one_of(*POSITION_BIASES),
    'drop_path_rate': number(lambda rate: 0 <= rate < 1, 'in [0, 1)'),
    'out_indices': Rule(_are_stages, f'ascending stages from 0 to {NUM_STAGES - 1}, such as (0, 1, 2, 3)'),
    'frozen_stages': integer(-1, NUM_STAGES),
    'with_cp': one_of(True, False),
    'init_cfg': optional(Rule(_is_init_cfg, "dict(type='Pretrained', checkpoint=FILE) or the like")),
    'block_patterns': each_stage(
        Rule(
            lambda pattern: isinstance(pattern, str) and bool(pattern) and set(pattern) <= set(BLOCKS),
            f'letters of {", ".join(f"{letter} ({name})" for letter, name in BLOCKS.items())}',
        )
    ),
    'key_strides': each_stage(integer(1)),
    'offset_range': optional(number(lambda cells: cells >= 0, 'not below 0')),
    'overlap_patches': one_of(True, False),
    'lpu': one_of(True, False),
    'conv_mlp': one_of(True, False),
}


def check_settings(arch: Mapping, **settings: Any) -> None:
    """Raises a `ValueError` that names the first setting with a value that it cannot have.

    Args:
        arch: With all keys of `ARCH_RULES`.
        **settings: All of `RULES`.
    """
    for rules, values in ((ARCH_RULES, arch), (RULES, settings)):
        for name, rule in rules.items():
            if not rule.allows(values[name]):
                raise ValueError(f'{name} must be {rule.text}, got {name}={values[name]!r}')
    if int(settings['mlp_ratio'] * arch['embed_dims']) < 1:
        raise ValueError(
            'mlp_ratio leaves the MLPs without channels, '
            f'got embed_dims={arch["embed_dims"]}, mlp_ratio={settings["mlp_ratio"]}'
        )
    stages = zip(arch['num_heads'], arch['offset_groups'], settings['block_patterns'])
    for stage, (num_heads, offset_groups, pattern) in enumerate(stages):
        channels = arch['embed_dims'] * 2**stage
        if channels % num_heads:
            raise ValueError(
                f'num_heads must divide the channels of its stage, got {stage=}, {channels=}, {num_heads=}'
            )
        if 'D' in pattern and num_heads % offset_groups:
            raise ValueError(
                'offset_groups must divide the num_heads of its stage, '
                f'got {stage=}, {num_heads=}, {offset_groups=}'
            )
