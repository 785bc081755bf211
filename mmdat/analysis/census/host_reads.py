"""What the host reads of the device in the heads' losses, where there are no numbers: it is assumed.

The heads of MMDetection and MMSegmentation ask for values (`if mask.any()`) and choose by them (`nonzero`),
so shapes depend on numbers. Here every number that is read is 1 or true, and as many are chosen as samplers
take: `_CHOSEN` says how many where. A mask chooses the same number whenever it is asked.
"""

import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket

from .counting import Census

POSITIVES_OF_A_BOX = 10  # anchors or proposals that are assigned to it
_ATEN = torch.ops.aten
_TAKE_MASKS = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_}


class ReadingCensus(Census):
    """A census in which the host can read."""

    def __init__(self):
        super().__init__()
        self._chosen = weakref.WeakKeyDictionary()  # how many a mask chooses, by its storage
        self._comparisons = weakref.WeakKeyDictionary()

    def operate(self, func, args: tuple, kwargs: dict):
        match func:
            case _ATEN._local_scalar_dense.default:
                return _one(args[0].dtype)
            case _ATEN.nonzero.default:
                count = self._count_chosen(args[0])
                return torch.empty(count, args[0].ndim, dtype=torch.int64, device=args[0].device)
            case _ATEN._unique2.default:
                count = _count_chosen(args[0].numel(), _ATEN._unique2)
                return args[0].new_empty(count), *(args[0].new_empty(0, dtype=torch.int64) for _ in range(2))
            case _ATEN.equal.default:
                return True
        if func.overloadpacket in _TAKE_MASKS:
            args = args[0], self._positions(args[1]), *args[2:]
        out = super().operate(func, args, kwargs)
        if isinstance(out, Tensor) and out.dtype == torch.bool:
            self._comparisons[out.untyped_storage()] = func.overloadpacket
        return out

    def _positions(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Indices without masks, which choose positions instead."""
        positions = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                chosen = torch.empty(self._count_chosen(index), dtype=torch.int64, device=index.device)
                positions += [chosen] * index.ndim
            else:
                positions.append(index)
        return positions

    def _count_chosen(self, mask: Tensor) -> int:
        storage = mask.untyped_storage()
        if storage not in self._chosen:
            self._chosen[storage] = _count_chosen(mask.numel(), self._comparisons.get(storage))
        return self._chosen[storage]


def _one(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _count_chosen(size: int, by: OpOverloadPacket | None) -> int:
    """How many of `size` are chosen, by a mask that an operator made, or by `_unique2`."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if rule := _CHOSEN.get(f'{Path(code.co_filename).stem}.{code.co_name}'):
            return min(rule(frame.f_locals, size, by), size)
        frame = frame.f_back
    return size


def _assigned(names: dict[str, object], size: int, by: OpOverloadPacket | None) -> int:
    """Where `gt_inds > 0`, what is assigned to the boxes; where `gt_inds == 0`, the rest."""
    boxes = names['gt_bboxes'] if 'gt_bboxes' in names else names['gt_labels']
    positives = min(POSITIVES_OF_A_BOX * len(boxes), size)
    return {_ATEN.gt: positives, _ATEN.eq: size - positives}.get(by, size)


def _refined(names: dict[str, object], size: int, by: OpOverloadPacket | None) -> int:
    """The images in a batch of RoIs, and the RoIs of an image."""
    images = len(names['batch_img_metas'])
    return {_ATEN._unique2: images, _ATEN.eq: size // images}.get(by, size)


# By the function that asks, the innermost first, from the names in it. Elsewhere everything is chosen.
_CHOSEN: dict[str, Callable[[dict[str, object], int, OpOverloadPacket | None], int]] = {
    # as many positives as a sampler takes; of negatives there are more than it takes
    'random_sampler._sample_pos': lambda names, size, by: names['num_expected'],
    'max_iou_assigner.assign_wrt_overlaps': _assigned,
    'pseudo_sampler.sample': _assigned,
    # RoIs are spread evenly over the levels and the images
    'single_level_roi_extractor.forward': lambda names, size, by: -(-size // names['num_levels']),
    'bbox_head.refine_bboxes': _refined,
    # a quarter of the samples are positive
    'bbox_head.loss': lambda names, size, by: size // 4 if by is _ATEN.bitwise_and else size,
}
