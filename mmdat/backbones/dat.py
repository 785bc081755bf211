"""DAT, "Vision Transformer with Deformable Attention" (Xia et al., CVPR 2022), and its successor DAT++.

DAT++ is "DAT++: Spatially Dynamic Vision Transformer with Deformable Attention" (Xia et al., 2023).
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoint import check_identity, load_pretrained
from ..layers import (
    MLP,
    ConvStem,
    DeformableAttention,
    DeformableDETRAttention,
    DepthwiseConv,
    Downsample,
    DropPath,
    NeighborhoodAttention,
    SpatialReductionAttention,
    WindowAttention,
)
from ..utils.spelling import did_you_mean
from .settings import NUM_STAGES, check_settings

# Table 1: C, blocks, heads and offset groups of the stages, after the generation of the model. Stages 1
# and 2 of CVPR'22 are deformable, and so use their offset groups, only in the ablation of Table 7.
_SIZES = ('embed_dims', 'depths', 'num_heads', 'offset_groups')
_COLUMNS = ('generation', *_SIZES)
ARCHITECTURES = {
    'tiny':       dict(zip(_COLUMNS, ('cvpr',  96, (2, 2,  6, 2), (3, 6, 12, 24), (1, 2, 3,  6)))),
    'small':      dict(zip(_COLUMNS, ('cvpr',  96, (2, 2, 18, 2), (3, 6, 12, 24), (1, 2, 3,  6)))),
    'base':       dict(zip(_COLUMNS, ('cvpr', 128, (2, 2, 18, 2), (4, 8, 16, 32), (1, 2, 4,  8)))),
    'plus_tiny':  dict(zip(_COLUMNS, ('plus',  64, (2, 4, 18, 2), (2, 4,  8, 16), (1, 2, 4,  8)))),
    'plus_small': dict(zip(_COLUMNS, ('plus',  96, (2, 4, 18, 2), (3, 6, 12, 24), (1, 2, 3,  6)))),
    'plus_base':  dict(zip(_COLUMNS, ('plus', 128, (2, 4, 18, 2), (4, 8, 16, 32), (2, 4, 8, 16)))),
}  # fmt: skip
ALIASES = {'t': 'tiny', 's': 'small', 'b': 'base'}
ALIASES |= {f'plus_{short}': f'plus_{name}' for short, name in ALIASES.items()}

# The generations' defaults of the settings they differ in. Their coordinates are fixed, and no setting.
GENERATIONS = {
    'cvpr': dict(
        block_patterns=('LS', 'LS', 'LD', 'LD'),
        key_strides=(1, 1, 1, 1),
        offset_range=2.0,
        overlap_patches=False,
        lpu=False,
        conv_mlp=False,
    ),
    'plus': dict(
        block_patterns=('ND', 'ND', 'ND', 'DD'),
        key_strides=(8, 4, 2, 1),
        offset_range=None,
        overlap_patches=True,
        lpu=True,
        conv_mlp=True,
    ),
}
COORDINATES = {'cvpr': 'half_pixel', 'plus': 'corners'}


class DATBlock(nn.Module):
    """Transformer block: attention and MLP, each with pre-norm and a residual (Equations 4 and 5).

    In DAT++ a local perception unit, a depth-wise convolution with a residual, stands before them, and
    the MLP has a depth-wise convolution as well.
    """

    def __init__(
        self,
        embed_dims: int,
        attn: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        lpu: bool = False,
        conv_mlp: bool = False,
    ):
        super().__init__()
        self.lpu = DepthwiseConv(embed_dims) if lpu else None
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = MLP(embed_dims, int(mlp_ratio * embed_dims), conv_mlp)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.lpu is not None:
            x = x + self.lpu(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))  # Eq. (4)
        x = x + self.drop_path(self.mlp(self.norm2(x)))  # Eq. (5)
        return x


class DATStage(nn.Module):
    """Down-projection (but in the first stage) and the blocks at one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[DATBlock], with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


@MODELS.register_module()
class DAT(BaseModule):
    """Deformable Attention Transformer, CVPR'22 and DAT++, as a backbone of feature pyramids.

    The defaults are the published models. Weights released for CVPR'22 are exact at `img_size`; at other
    sizes windows are padded and the deformable bias tables are stretched over the map, which the DAT++
    models do by design.

    Args:
        arch: `'tiny' | 'small' | 'base'` of CVPR'22 (or `'t' | 's' | 'b'`), `'plus_tiny' | 'plus_small' |
            'plus_base'` of DAT++ (or `'plus_t'` and so on), or a dict with `embed_dims` (channels of
            stage 1; they double from stage to stage), `depths`, `num_heads` and `offset_groups` (one
            entry a stage), and `generation`, `'cvpr'` (if not given) or `'plus'`. The generation decides
            the coordinates of deformable attention, which weights and shapes do not show, and the
            defaults of the settings in `design`.
        img_size: Nominal side of the (square) images in pixels. It sizes the bias tables, not the
            input: images of every size are accepted. At most 8192.
        in_channels: Channels of the images.
        window_size: Side of the windows of `L` and `S` blocks, 7 in the paper, 12 at 384 pixels, at most 64.
        neighborhood_size: Side of the neighbourhoods of `N` blocks, odd, at most 63.
        mlp_ratio: Expansion of the MLPs, in (0, 64].
        offset_kernel_sizes: Kernels of the offset networks in each stage, odd, at most 63.
        num_points: Points of a query and head in the `Q` blocks of each stage (Table 8).
        pos_bias: Position bias of deformable attention, `'relative' | 'fixed' | 'dwconv' | None`
            (Table 6).
        drop_path_rate: Stochastic depth in [0, 1), rising linearly over the blocks. On ImageNet tiny,
            small and base were trained with 0.2, 0.3 and 0.5, in DAT++ with 0.2, 0.4 and 0.7.
        out_indices: Stages (0 to 3) whose maps are returned. Stages after the last are not built.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, `n` the first `n` stages as well.
            Frozen parts stay in evaluation mode under `train()`.
        with_cp: Activation checkpointing: recompute each block in the backward pass.
        init_cfg: As in MMEngine. `dict(type='Pretrained', checkpoint=FILE)` also takes the authors'
            files and the names of released ones, see `mmdat.checkpoint.load_pretrained`.
        **design: Settings with defaults of the generation, see `GENERATIONS`:

            - block_patterns: Attention of the blocks of each stage, repeated over its depth: `L` local
              window, `S` shifted window, `N` neighbourhood, `D` deformable (Table 7 varies them), `P`
              spatial reduction (Table 6), `Q` points of each query as in Deformable DETR (Table 8).
            - key_strides: Down-sampling factor `r` from queries to keys in each stage, in `D`
              (Section 3.2) and `P` blocks. Weights of `D` blocks fit every stride.
            - offset_range: Largest offset `s` of a key in cells of the key grid (Figure 4); 0 switches
              deformation off (Table 6), `None` bounds the points to the map instead.
            - overlap_patches: Overlapping convolutions as patch embedding and down-projections (DAT-T*,
              Table 9). The patch embedding is one convolution in CVPR'22 and two in DAT++.
            - lpu: Local perception units, depth-wise convolutions before the blocks (DAT++).
            - conv_mlp: Depth-wise convolutions in the MLPs (DAT++).

    Attributes:
        identity: What weights of this model record and what others are compared with: `generation`, the row
            of Table 1, and `blocks`, the attention of each block.

    Raises:
        ValueError: For settings that are unknown, of a wrong type, out of range or do not fit each other.
    """

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        img_size: int = 224,
        in_channels: int = 3,
        window_size: int = 7,
        neighborhood_size: int = 7,
        mlp_ratio: float = 4.0,
        offset_kernel_sizes: Sequence[int] = (9, 7, 5, 3),
        num_points: Sequence[int] = (16, 16, 16, 16),
        pos_bias: str | None = 'relative',
        drop_path_rate: float = 0.2,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
        **design,
    ):
        arch = resolve_arch(arch)
        defaults = GENERATIONS[arch['generation']]
        if unknown := design.keys() - defaults.keys():
            raise ValueError(_describe_unknown('setting', unknown, _setting_names()))
        design = defaults | design
        check_settings(
            arch,
            img_size=img_size,
            in_channels=in_channels,
            window_size=window_size,
            neighborhood_size=neighborhood_size,
            mlp_ratio=mlp_ratio,
            offset_kernel_sizes=offset_kernel_sizes,
            num_points=num_points,
            pos_bias=pos_bias,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            init_cfg=init_cfg,
            **design,
        )
        super().__init__(init_cfg=init_cfg)
        self.generation = arch['generation']
        patterns = zip(design['block_patterns'], arch['depths'])
        self.identity = dict(arch, blocks=tuple(''.join(islice(cycle(p), n)) for p, n in patterns))
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages

        depths, num_heads = arch['depths'], arch['num_heads']
        dims = [arch['embed_dims'] * 2**i for i in range(NUM_STAGES)]
        last = max(sum(depths) - 1, 1)
        drop_paths = iter([drop_path_rate * n / last for n in range(sum(depths))])
        key_strides, overlap = design['key_strides'], design['overlap_patches']

        def build_attention(letter: str, i: int) -> nn.Module:
            match letter:
                case 'L' | 'S':
                    return WindowAttention(dims[i], num_heads[i], window_size, shifted=letter == 'S')
                case 'N':
                    return NeighborhoodAttention(dims[i], num_heads[i], neighborhood_size)
                case 'P':
                    return SpatialReductionAttention(dims[i], num_heads[i], key_strides[i])
                case 'Q':
                    return DeformableDETRAttention(dims[i], num_heads[i], num_points[i])
                case 'D':
                    return DeformableAttention(
                        dims[i],
                        num_heads[i],
                        offset_groups=arch['offset_groups'][i],
                        map_size=(-(-img_size // 2 ** (i + 2)),) * 2,
                        key_stride=key_strides[i],
                        kernel_size=offset_kernel_sizes[i],
                        offset_range=design['offset_range'],
                        pos_bias=pos_bias,
                        coordinates=COORDINATES[self.generation],
                    )

        if self.generation == 'plus' and overlap:
            self.patch_embed = ConvStem(in_channels, dims[0])
        else:
            self.patch_embed = Downsample(in_channels, dims[0], 4, overlap, bias=True)
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            downsample = Downsample(dims[i - 1], dims[i], 2, overlap, bias=False) if i else nn.Identity()
            blocks = [
                DATBlock(
                    dims[i],
                    build_attention(letter, i),
                    mlp_ratio,
                    next(drop_paths),
                    lpu=design['lpu'],
                    conv_mlp=design['conv_mlp'],
                )
                for letter in islice(cycle(design['block_patterns'][i]), depths[i])
            ]
            self.stages.append(DATStage(downsample, blocks, with_cp))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        self._freeze()

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Normalised maps of the stages in `out_indices`.

        Args:
            img: `(B, in_channels, H, W)`, any size.

        Returns:
            For each stage `i` a contiguous `(B, embed_dims * 2 ** i, ceil(H / s), ceil(W / s))` with the
            stride `s = 4 * 2 ** i`.
        """
        x = self.patch_embed(img.permute(0, 2, 3, 1))  # (B, H, W, C)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)

    @torch.no_grad()
    def sampling_locations(self, img: Tensor) -> dict[str, Tensor]:
        """Where each deformable attention samples its keys, to be looked at (Figure 6).

        Args:
            img: `(B, in_channels, H, W)`.

        Returns:
            By module name, such as `'stages.2.blocks.1.attn'`: `(B, G, H_k, W_k, 2)`, last dimension
            `(y, x)`; -1 and +1 are the centres of the map's border pixels.
        """
        locations, hooks = {}, []
        for name, module in self.named_modules():
            if isinstance(module, DeformableAttention):

                def record(module, args, name=name):
                    locations[name] = module.sampling_locations(*args)

                hooks.append(module.register_forward_pre_hook(record))
        try:
            self(img)
        finally:
            for hook in hooks:
                hook.remove()
        return locations

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for mmpretrain's layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter in a model.
            prefix: Where the backbone is in the model, such as `'backbone.'`.

        Returns:
            The depth, and the number of depths: 0 is the patch embedding, block `n` of all has depth
            `n` from 1 on, a down-projection that of the block before it. Output norms, and parameters
            outside `prefix`, have the last depth.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        num_layers = sum(depths) + 2
        if param_name.startswith(f'{prefix}patch_embed.'):
            return 0, num_layers
        if not param_name.startswith(f'{prefix}stages.'):
            return num_layers - 1, num_layers
        stage, part, block = param_name.removeprefix(f'{prefix}stages.').split('.')[:3]
        before = sum(depths[: int(stage)])
        return before + int(block) + 1 if part == 'blocks' else before, num_layers

    def init_weights(self):
        """Initialise as `init_cfg` says. A pretrained file must fit, see `load_pretrained`."""
        init_cfg = self.init_cfg
        cfgs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or ())
        pretrained = [cfg for cfg in cfgs if cfg['type'] in ('Pretrained', PretrainedInit)]
        self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained]
        super().init_weights()
        self.init_cfg = init_cfg
        for cfg in pretrained:
            load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'), cfg.get('generation'))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, '_metadata'):
            destination._metadata.setdefault(prefix[:-1], {}).update(self.identity)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if 'generation' in local_metadata:
            check_identity(local_metadata, self.identity, 'the state dict')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def train(self, mode: bool = True):
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self):
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.stages[: self.frozen_stages]]
        frozen += [getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        for module in frozen:
            module.eval().requires_grad_(False)


def resolve_arch(arch: str | Mapping) -> dict:
    """The row of Table 1 that `arch` names, or `arch` itself, of CVPR'22 if it names no generation.

    Raises:
        ValueError: If it is no known name and no dict, or keys are missing or unknown.
    """
    if not isinstance(arch, Mapping):
        name = ALIASES.get(arch, arch) if isinstance(arch, str) else None
        if name not in ARCHITECTURES:
            raise ValueError(_describe_unknown('arch', [arch], [*ARCHITECTURES, *ALIASES]))
        return ARCHITECTURES[name]
    if unknown := arch.keys() - set(_COLUMNS):
        raise ValueError(_describe_unknown('key of arch', unknown, _COLUMNS))
    if missing := set(_SIZES) - arch.keys():
        raise ValueError(f'arch lacks {sorted(missing)}, it needs {_SIZES}')
    arch = {'generation': 'cvpr', **arch}
    if arch['generation'] not in list(GENERATIONS):  # a list takes what cannot be hashed, too
        raise ValueError(_describe_unknown('generation', [arch['generation']], GENERATIONS))
    return arch


def _setting_names() -> list[str]:
    names = [name for name in inspect.signature(DAT).parameters if name != 'design']
    return names + list(GENERATIONS['cvpr'])


def _describe_unknown(kind: str, names: Iterable, allowed: Iterable[str]) -> str:
    names, allowed = sorted(names), list(allowed)
    hint = did_you_mean(names[0], allowed)
    return f'unknown {kind} {", ".join(map(repr, names))}{hint} (allowed: {", ".join(allowed)})'
