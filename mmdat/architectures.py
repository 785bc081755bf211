"""What a DAT can be: Table 1 of the paper, the two generations, and what their settings allow.

Nothing here needs PyTorch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import cycle, islice
from typing import Any, Literal

from .rules import Rule, integer, is_sequence, number, one_of, optional
from .spelling import did_you_mean

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


@dataclass(frozen=True)
class Architecture:
    """A row of Table 1.

    Args:
        embed_dims: Channels of stage 1; they double from stage to stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        offset_groups: Groups of channels with offsets of their own, in the deformable blocks of each stage.
        generation: A key of `GENERATIONS`. It decides formulas that weights and shapes do not show.
    """

    embed_dims: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    offset_groups: Sequence[int]
    generation: str = 'cvpr'


# Stages 1 and 2 of CVPR'22 are deformable, and so use their offset groups, only in the ablation of Table 7.
ARCHITECTURES = {
    'tiny':     Architecture(embed_dims=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24),
                             offset_groups=(1, 2, 3, 6)),
    'small':    Architecture(embed_dims=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24),
                             offset_groups=(1, 2, 3, 6)),
    'base':     Architecture(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32),
                             offset_groups=(1, 2, 4, 8)),
    'pp_tiny':  Architecture(embed_dims=64, depths=(2, 4, 18, 2), num_heads=(2, 4, 8, 16),
                             offset_groups=(1, 2, 4, 8), generation='pp'),
    'pp_small': Architecture(embed_dims=96, depths=(2, 4, 18, 2), num_heads=(3, 6, 12, 24),
                             offset_groups=(1, 2, 3, 6), generation='pp'),
    'pp_base':  Architecture(embed_dims=128, depths=(2, 4, 18, 2), num_heads=(4, 8, 16, 32),
                             offset_groups=(2, 4, 8, 16), generation='pp'),
}  # fmt: skip
ALIASES = {'t': 'tiny', 's': 'small', 'b': 'base', 'pp_t': 'pp_tiny', 'pp_s': 'pp_small', 'pp_b': 'pp_base'}


@dataclass(frozen=True)
class Generation:
    """Name, convention of coordinates, and defaults of the settings that the generations differ in."""

    title: str
    coordinates: Literal['half_pixel', 'corners']
    block_patterns: tuple[str, ...]
    key_strides: tuple[int, ...]
    offset_range: float | Literal['map']
    overlap_patches: bool
    lpu: bool
    conv_mlp: bool


GENERATIONS = {
    'cvpr': Generation(
        title="CVPR'22",
        coordinates='half_pixel',
        block_patterns=('LS', 'LS', 'LD', 'LD'),
        key_strides=(1, 1, 1, 1),
        offset_range=2.0,
        overlap_patches=False,
        lpu=False,
        conv_mlp=False,
    ),
    'pp': Generation(
        title='DAT++',
        coordinates='corners',
        block_patterns=('ND', 'ND', 'ND', 'DD'),
        key_strides=(8, 4, 2, 1),
        offset_range='map',
        overlap_patches=True,
        lpu=True,
        conv_mlp=True,
    ),
}


def each_stage(rule: Rule) -> Rule:
    """A sequence with one entry for each stage."""

    def allows(value: Any) -> bool:
        return is_sequence(value) and len(value) == NUM_STAGES and all(map(rule.allows, value))

    return Rule(allows, f'one entry for each of the {NUM_STAGES} stages, each {rule.text}')


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and set(value) <= set(BLOCKS)


def _are_stages(value: Any) -> bool:
    ascending = is_sequence(value) and all(map(integer(0, NUM_STAGES - 1).allows, value))
    return ascending and len(value) > 0 and list(value) == sorted(set(value))


def _is_init_cfg(value: Any) -> bool:
    cfgs = value if is_sequence(value) else [value]
    return all(isinstance(cfg, Mapping) and 'type' in cfg for cfg in cfgs)


_CELLS = number(lambda cells: cells >= 0, 'not below 0')
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
    'block_patterns': each_stage(
        Rule(_is_pattern, f'letters of {", ".join(f"{letter} ({name})" for letter, name in BLOCKS.items())}')
    ),
    'window_size': integer(1, 64, why=_WINDOW),
    'neighborhood_size': integer(1, 63, odd=True, why=_TABLE),
    'key_strides': each_stage(integer(1)),
    'offset_range': Rule(lambda v: v == 'map' or _CELLS.allows(v), f"'map' or {_CELLS.text}"),
    'offset_kernel_sizes': each_stage(integer(1, 63, odd=True)),
    'pos_bias': one_of(*POSITION_BIASES),
    'num_points': each_stage(integer(1, 1024)),
    'mlp_ratio': number(lambda ratio: 0 < ratio <= 64, 'in (0, 64]'),
    'overlap_patches': one_of(True, False),
    'lpu': one_of(True, False),
    'conv_mlp': one_of(True, False),
    'drop_path_rate': number(lambda rate: 0 <= rate < 1, 'in [0, 1)'),
    'out_indices': Rule(_are_stages, f'ascending stages from 0 to {NUM_STAGES - 1}, such as (0, 1, 2, 3)'),
    'frozen_stages': integer(-1, NUM_STAGES),
    'with_cp': one_of(True, False),
    'init_cfg': optional(Rule(_is_init_cfg, "dict(type='Pretrained', checkpoint=FILE) or the like")),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a `DAT`, which says what they mean: checked, and none left to the generation.

    Raises:
        ValueError: For the first setting that is out of range, or does not fit another.
    """

    arch: Architecture
    img_size: int
    in_channels: int
    block_patterns: Sequence[str]
    window_size: int
    neighborhood_size: int
    key_strides: Sequence[int]
    offset_range: float | Literal['map']
    offset_kernel_sizes: Sequence[int]
    pos_bias: Literal['relative', 'fixed', 'dwconv'] | None
    num_points: Sequence[int]
    mlp_ratio: float
    overlap_patches: bool
    lpu: bool
    conv_mlp: bool
    drop_path_rate: float
    out_indices: Sequence[int]
    frozen_stages: int
    with_cp: bool
    init_cfg: dict | list | None

    @classmethod
    def resolve(cls, arch: str | Mapping, **settings: Any) -> 'Settings':
        """Takes `arch` as `DAT` does, and `None` for the default of the generation."""
        arch = resolve_arch(arch)
        defaults = vars(GENERATIONS[arch.generation])
        filled = {key: defaults.get(key) if value is None else value for key, value in settings.items()}
        return cls(arch=arch, **filled)

    def __post_init__(self):
        for rules, values in ((ARCH_RULES, self.arch), (RULES, self)):
            for name, rule in rules.items():
                value = getattr(values, name)
                if not rule.allows(value):
                    raise ValueError(f'{name} must be {rule.text}, got {name}={value!r}')
        for stage in range(NUM_STAGES):
            self._check_stage(stage)

    def _check_stage(self, stage: int) -> None:
        channels, num_heads = self.channels(stage), self.arch.num_heads[stage]
        if channels % num_heads:
            raise ValueError(
                f'num_heads must divide the channels of its stage, got {stage=}, {channels=}, {num_heads=}'
            )
        offset_groups = self.arch.offset_groups[stage]
        if 'D' in self.block_patterns[stage] and num_heads % offset_groups:
            raise ValueError(
                'offset_groups must divide the num_heads of its stage, '
                f'got {stage=}, {num_heads=}, {offset_groups=}'
            )
        if int(self.mlp_ratio * channels) < 1:
            raise ValueError(
                'mlp_ratio leaves the MLPs without channels, '
                f'got embed_dims={self.arch.embed_dims}, mlp_ratio={self.mlp_ratio}'
            )

    @property
    def generation(self) -> Generation:
        return GENERATIONS[self.arch.generation]

    def channels(self, stage: int) -> int:
        return self.arch.embed_dims * 2**stage

    def map_size(self, stage: int) -> tuple[int, int]:
        """Height and width of the map of a stage for an image of `img_size`, in pixels of the map."""
        return (-(-self.img_size // stride_of(stage)),) * 2

    def blocks(self, stage: int) -> str:
        """The attention of each block of a stage, by the letters of `BLOCKS`."""
        return ''.join(islice(cycle(self.block_patterns[stage]), self.arch.depths[stage]))


def stride_of(stage: int) -> int:
    """Pixels of the image for a pixel of a stage's map, along an axis."""
    return 4 * 2**stage


def resolve_arch(arch: str | Mapping) -> Architecture:
    """The row of Table 1 that `arch` names, or the one that it spells out.

    Raises:
        ValueError: If it is no known name and no dict, or keys are missing or unknown.
    """
    if not isinstance(arch, Mapping):
        name = ALIASES.get(arch, arch) if isinstance(arch, str) else None
        if name not in ARCHITECTURES:
            raise ValueError(_describe_unknown('arch', arch, [*ARCHITECTURES, *ALIASES]))
        return ARCHITECTURES[name]
    names = [field.name for field in fields(Architecture)]
    for key in arch:
        if key not in names:
            raise ValueError(_describe_unknown('key of arch', key, names))
    if missing := [name for name in ARCH_RULES if name not in arch]:
        raise ValueError(f'arch lacks {", ".join(missing)} (it needs {", ".join(ARCH_RULES)})')
    arch = Architecture(**{key: tuple(value) if is_sequence(value) else value for key, value in arch.items()})
    if arch.generation not in list(GENERATIONS):  # a list takes what cannot be hashed, too
        raise ValueError(_describe_unknown('generation', arch.generation, GENERATIONS))
    return arch


def _describe_unknown(kind: str, name: Any, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    return f'unknown {kind} {name!r}{did_you_mean(name, allowed)} (allowed: {", ".join(allowed)})'
