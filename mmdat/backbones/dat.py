"""DAT, "Vision Transformer with Deformable Attention" (Xia et al., CVPR 2022), and its successor DAT++.

DAT++ is "DAT++: Spatially Dynamic Vision Transformer with Deformable Attention" (Xia et al., 2023).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..architectures import Settings, stride_of
from ..checkpoint import adapt_state_dict, check_identity, load_pretrained
from ..layers import (
    MLP,
    ConvStem,
    DeformableAttention,
    DeformableDETRAttention,
    DepthwiseConv,
    Downsample,
    DropPath,
    NeighborhoodAttention,
    OutputNorm,
    SpatialReductionAttention,
    WindowAttention,
    keep_in_graph,
)


def build_attention(letter: str, stage: int, settings: Settings) -> nn.Module:
    """The attention of a block, see `BLOCKS` for the letters."""
    sizes = settings.channels(stage), settings.arch.num_heads[stage]
    match letter:
        case 'L' | 'S':
            return WindowAttention(*sizes, settings.window_size, shifted=letter == 'S')
        case 'N':
            return NeighborhoodAttention(*sizes, settings.neighborhood_size)
        case 'P':
            return SpatialReductionAttention(*sizes, settings.key_strides[stage])
        case 'Q':
            return DeformableDETRAttention(*sizes, settings.num_points[stage])
        case 'D':
            return DeformableAttention(
                *sizes,
                offset_groups=settings.arch.offset_groups[stage],
                map_size=settings.map_size(stage),
                key_stride=settings.key_strides[stage],
                kernel_size=settings.offset_kernel_sizes[stage],
                offset_range=settings.offset_range,
                pos_bias=settings.pos_bias,
                coordinates=settings.generation.coordinates,
            )


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
    """Down-projection (but in the first stage) and the blocks at one resolution.

    Args:
        stage: Which, from 0 on.
        settings: Of the whole network.
        drop_paths: Probability of stochastic depth of each block.
    """

    def __init__(self, stage: int, settings: Settings, drop_paths: Sequence[float]):
        super().__init__()
        channels = settings.channels(stage)
        if stage == 0:
            self.downsample = nn.Identity()
        else:
            before = settings.channels(stage - 1)
            self.downsample = Downsample(before, channels, 2, settings.overlap_patches, bias=False)
        self.blocks = nn.ModuleList(
            DATBlock(
                channels,
                build_attention(letter, stage, settings),
                settings.mlp_ratio,
                drop_path,
                lpu=settings.lpu,
                conv_mlp=settings.conv_mlp,
            )
            for letter, drop_path in zip(settings.blocks(stage), drop_paths)
        )
        self.with_cp = settings.with_cp

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
        arch: `'tiny' | 'small' | 'base'` of CVPR'22 (or `'t' | 's' | 'b'`), `'pp_tiny' | 'pp_small' |
            'pp_base'` of DAT++ (or `'pp_t'` and so on), or a dict with the fields of
            `mmdat.architectures.Architecture`. Its generation, `'cvpr'` or `'pp'`, decides the coordinates of
            deformable attention, which weights and shapes do not show, and the defaults of the settings that
            are `None` here, see `mmdat.architectures.GENERATIONS`.
        img_size: Nominal side of the (square) images in pixels. It sizes the bias tables, not the
            input: images of every size are accepted. At most 8192.
        in_channels: Channels of the images.
        block_patterns: Attention of the blocks of each stage, repeated over its depth: `L` local window,
            `S` shifted window, `N` neighbourhood, `D` deformable (Table 7 varies them), `P` spatial
            reduction (Table 6), `Q` points of each query as in Deformable DETR (Table 8).
        window_size: Side of the windows of `L` and `S` blocks, 7 in the paper, 12 at 384 pixels, at most 64.
        neighborhood_size: Side of the neighbourhoods of `N` blocks, odd, at most 63.
        key_strides: Down-sampling factor `r` from queries to keys in each stage, in `D` (Section 3.2) and
            `P` blocks. Weights of `D` blocks fit every stride.
        offset_range: Largest offset `s` of a key in cells of the key grid (Figure 4). 0 switches deformation
            off (Table 6), `'map'` bounds the points to the map instead of the offsets.
        offset_kernel_sizes: Kernels of the offset networks in each stage, odd, at most 63.
        pos_bias: Position bias of deformable attention, `'relative' | 'fixed' | 'dwconv' | None`
            (Table 6).
        num_points: Points of a query and head in the `Q` blocks of each stage (Table 8).
        mlp_ratio: Expansion of the MLPs, in (0, 64].
        overlap_patches: Overlapping convolutions as patch embedding and down-projections (DAT-T*,
            Table 9). The patch embedding is one convolution in CVPR'22 and two in DAT++.
        lpu: Local perception units, depth-wise convolutions before the blocks (DAT++).
        conv_mlp: Depth-wise convolutions in the MLPs (DAT++).
        drop_path_rate: Stochastic depth in [0, 1), rising linearly over the blocks. On ImageNet tiny,
            small and base were trained with 0.2, 0.3 and 0.5, in DAT++ with 0.2, 0.4 and 0.7.
        out_indices: Stages (0 to 3) whose maps are returned. Stages after the last are not built.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, `n` the first `n` stages as well.
            Frozen parts stay in evaluation mode under `train()`.
        with_cp: Activation checkpointing: recompute each block in the backward pass.
        init_cfg: As in MMEngine. `dict(type='Pretrained', checkpoint=FILE)` also takes the authors'
            files and the names of released ones, see `mmdat.checkpoint.load_pretrained`.

    Attributes:
        out_channels: Channels of each map that is returned, for necks and heads.
        out_strides: Pixels of the image for a pixel of each map.
        identity: What weights of this model record and what others are compared with: the fields of its
            `Architecture`, and `blocks`, the attention of each block.

    Raises:
        ValueError: For settings of a wrong type, out of range, or that do not fit each other.
    """

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        img_size: int = 224,
        in_channels: int = 3,
        block_patterns: Sequence[str] | None = None,
        window_size: int = 7,
        neighborhood_size: int = 7,
        key_strides: Sequence[int] | None = None,
        offset_range: float | Literal['map'] | None = None,
        offset_kernel_sizes: Sequence[int] = (9, 7, 5, 3),
        pos_bias: Literal['relative', 'fixed', 'dwconv'] | None = 'relative',
        num_points: Sequence[int] = (16, 16, 16, 16),
        mlp_ratio: float = 4.0,
        overlap_patches: bool | None = None,
        lpu: bool | None = None,
        conv_mlp: bool | None = None,
        drop_path_rate: float = 0.2,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
    ):
        settings = Settings.resolve(
            arch,
            img_size=img_size,
            in_channels=in_channels,
            block_patterns=block_patterns,
            window_size=window_size,
            neighborhood_size=neighborhood_size,
            key_strides=key_strides,
            offset_range=offset_range,
            offset_kernel_sizes=offset_kernel_sizes,
            pos_bias=pos_bias,
            num_points=num_points,
            mlp_ratio=mlp_ratio,
            overlap_patches=overlap_patches,
            lpu=lpu,
            conv_mlp=conv_mlp,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            init_cfg=init_cfg,
        )
        super().__init__(init_cfg=init_cfg)
        depths = settings.arch.depths
        blocks = tuple(map(settings.blocks, range(len(depths))))
        self.identity = {'generation': settings.arch.generation, **asdict(settings.arch), 'blocks': blocks}
        self.out_indices = tuple(out_indices)
        self.out_channels = tuple(map(settings.channels, self.out_indices))
        self.out_strides = tuple(map(stride_of, self.out_indices))
        self.frozen_stages = frozen_stages

        channels = settings.channels(0)
        if settings.arch.generation == 'pp' and settings.overlap_patches:
            self.patch_embed = ConvStem(in_channels, channels)
        else:
            self.patch_embed = Downsample(in_channels, channels, 4, settings.overlap_patches, bias=True)
        rates = [drop_path_rate * n / max(sum(depths) - 1, 1) for n in range(sum(depths))]
        self.stages = nn.ModuleList()
        for stage in range(self.out_indices[-1] + 1):
            first = sum(depths[:stage])
            self.stages.append(DATStage(stage, settings, rates[first : first + depths[stage]]))
        for stage, channels in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{stage}', OutputNorm(channels))
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
                outs.append(self._norm(i, x))
        return tuple(outs)

    def _norm(self, i: int, x: Tensor) -> Tensor:
        """The map of stage `i` as it is returned."""
        norm = getattr(self, f'norm{i}')
        if self.training and torch.is_grad_enabled() and not torch.jit.is_tracing():
            # necks and heads may leave maps out, whose norms get no other gradient
            others = [getattr(self, f'norm{j}') for j in self.out_indices if j != i]
            x = keep_in_graph(x, [p for other in others for p in other.parameters()])
        return norm(x)

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
        adapt_state_dict(state_dict, self, prefix)
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
