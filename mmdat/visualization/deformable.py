"""What deformable attention does to an image: its keys, their weights, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architectures import stride_of
from ..backbones import DAT
from ..errors import UserError
from ..layers import DeformableAttention
from .inspection import record

_MAX_WEIGHTS = 2**24  # numbers that a chunk of queries holds


@dataclass(frozen=True)
class DeformableLayer:
    """A deformable attention and its input.

    Args:
        name: Of the module in the backbone, such as `'stages.2.blocks.1.attn'`.
        attn: The module.
        x: Its input `(B, H, W, C)`.
    """

    name: str
    attn: DeformableAttention
    x: Tensor

    @property
    def stage(self) -> int:
        """From 0 on."""
        return int(self.name.split('.')[1])

    @property
    def stride(self) -> int:
        """Pixels of the network's input for a pixel of the map."""
        return stride_of(self.stage)

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map of queries."""
        return tuple(self.x.shape[1:3])

    @torch.no_grad()
    def locations(self) -> Tensor:
        """Where keys are sampled, `(B, G, H_k, W_k, 2)`, see `DeformableAttention.sampling_locations`."""
        return self.attn.sampling_locations(self.x)

    @torch.no_grad()
    def weights(self, queries: Sequence[int]) -> Tensor:
        """How much queries attend to keys, `(B, M, N_q, N_k)`, see `attn.attention_weights`."""
        return self.attn.attention_weights(self.x, torch.as_tensor(queries, device=self.x.device))


def find_dat(model: nn.Module) -> DAT:
    """The DAT in a model.

    Raises:
        UserError: If there is none, or none with deformable attention.
    """
    name = type(model).__name__
    backbones = [module for module in model.modules() if isinstance(module, DAT)]
    if not backbones:
        raise UserError(f'{name} has no DAT backbone')
    if not any(isinstance(module, DeformableAttention) for module in backbones[0].modules()):
        blocks = ', '.join(backbones[0].identity['blocks'])
        raise UserError(
            f'the DAT of {name} has no deformable attention to look at: none of its blocks, {blocks}, is a D'
        )
    return backbones[0]


def deformable_layers(backbone: DAT, images: Tensor) -> list[DeformableLayer]:
    """All deformable attentions of a backbone with their inputs, in the order of the network.

    Args:
        backbone: In evaluation mode, see `inspecting`.
        images: `(B, in_channels, H, W)`, what the backbone takes.
    """
    attns = {
        name: module for name, module in backbone.named_modules() if isinstance(module, DeformableAttention)
    }
    calls = record(attns, backbone, images)
    return [DeformableLayer(name, attns[name], x) for name, ((x,), _) in calls.items()]


def last_of_each_stage(layers: Sequence[DeformableLayer]) -> list[DeformableLayer]:
    """The last deformable attention of each stage that has one."""
    return list({layer.stage: layer for layer in layers}.values())


def top_keys(
    weights: Tensor, locations: Tensor, top_k: int, head: int | None = None
) -> tuple[Tensor, Tensor]:
    """The keys to which one query attends most.

    Heads of a group look at the same points. Over all heads, the weight of a point is the sum of those of
    its group's heads, divided by the number of all heads. So the weights of all points sum to 1.

    Args:
        weights: `(M, N_k)`, of one query.
        locations: `(G, N_k, 2)`; heads are contiguous in the groups.
        top_k: How many keys, fewer where there are not so many.
        head: Only those of this head, by its own weights.

    Returns:
        Locations `(K, 2)` and weights `(K,)`, the largest first.
    """
    num_heads, groups = len(weights), len(locations)
    if head is None:
        scores = weights.unflatten(0, (groups, -1)).sum(dim=1) / num_heads
    else:
        scores = weights[head][None]
        locations = locations[head // (num_heads // groups)][None]
    scores, order = scores.flatten().topk(min(top_k, scores.numel()))
    return locations.flatten(0, 1)[order], scores


@torch.no_grad()
def propagate_scores(layers: Sequence[DeformableLayer], is_image: Tensor) -> list[Tensor]:
    """Scores of the keys of all deformable attentions, propagated from the last to the first (Figure 5).

    The paper propagates attention weights through the deformable layers "by a similar mechanism to DCNs",
    whose authors follow the sampling points of a unit from layer to layer, and draw those in which they end.
    It says no more. This is the simplest rule of that kind:

    1. At the last layer, every query on the image has the same share, and the shares sum to 1.
    2. The score of a point is the sum over all queries of their share, times their attention to the point,
       in the mean over all heads; those of other groups have other points.
    3. A point is interpolated from the four pixels around it. It passes its score to them in proportion to
       the weights of that interpolation; what falls outside the map, where features are zero, is lost.
    4. These are the shares of the queries of the layer before. Where a stage ends, a pixel passes its share
       in equal parts to the pixels that the down-projection makes it from (2 x 2, fewer at borders; where
       kernels overlap, the others are left out).

    Nothing else moves shares: residuals, MLPs and other attentions count as staying in place.

    Args:
        layers: In the order of the network, as from `deformable_layers`.
        is_image: Which queries of the last layer are no padding, booleans `(H, W)` or `(B, H, W)`.

    Returns:
        For each layer `(B, G, H_k, W_k)`. Each sums to 1, or less by what was lost on the way.
    """
    shares = is_image.to(layers[-1].x.device, torch.float64).expand(layers[-1].x.shape[:3])
    shares = shares / shares.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    scores = []
    stage = layers[-1].stage
    for layer in reversed(layers):
        for _ in range(stage - layer.stage):
            shares = _undo_downsampling(shares, layer, stage)
            stage -= 1
        scores.append(_score_keys(layer, shares))
        shares = _pass_to_pixels(layer, scores[-1])
    return scores[::-1]


def _score_keys(layer: DeformableLayer, shares: Tensor) -> Tensor:
    locations = layer.locations()
    batch, groups, rows, columns, _ = locations.shape
    num_heads = layer.attn.num_heads
    scores = shares.new_zeros(batch, num_heads, rows * columns)
    chunk = max(_MAX_WEIGHTS // (batch * num_heads * rows * columns), 1)
    shares = shares.flatten(1)
    # queries without a share, padding, need no weights
    for queries in shares.any(dim=0).nonzero().flatten().split(chunk):
        weights = layer.attn.attention_weights(layer.x, queries)
        scores += torch.einsum('bq,bmqk->bmk', shares[:, queries], weights.double())
    return scores.unflatten(1, (groups, -1)).sum(dim=2).unflatten(-1, (rows, columns)) / num_heads


def _pass_to_pixels(layer: DeformableLayer, scores: Tensor) -> Tensor:
    """Transposes the sampling of keys: scores `(B, G, H_k, W_k)` to shares `(B, H, W)`."""
    batch, groups = scores.shape[:2]
    locations = layer.locations().flatten(2, 3).to(scores.dtype)
    with torch.enable_grad():
        pixels = scores.new_zeros(batch, *layer.map_size, groups, requires_grad=True)
        sampled = layer.attn.sample(pixels, locations)  # (B, N_k, G)
        (shares,) = torch.autograd.grad((sampled * scores.flatten(2).transpose(1, 2)).sum(), pixels)
    return shares.sum(dim=-1)


def _undo_downsampling(shares: Tensor, layer: DeformableLayer, stage: int) -> Tensor:
    """From the map of a stage to that of the stage before."""
    # all maps of the network are halves of each other, rounded up
    height, width = (-(-n // 2 ** (stage - 1 - layer.stage)) for n in layer.map_size)

    def enlarge(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)[:, :height, :width]

    rows, columns = (torch.arange(n, device=shares.device) for n in (height, width))
    pixels = torch.where(rows == rows.max(), 1 + rows % 2, 2)[:, None] * torch.where(
        columns == columns.max(), 1 + columns % 2, 2
    )
    return enlarge(shares) / pixels
