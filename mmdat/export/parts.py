"""What of a model is exported: images in, a fixed list of tensors out."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

_BACKBONE = '--backbone-only exports its backbone'


class Part(nn.Module):
    """A part of a model without its pre- and post-processing.

    Args:
        model: The model, as `init_model` gives it.

    Attributes:
        kind: What it is, a word.
        names: Of the outputs.
    """

    kind: str
    names: Sequence[str]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """From normalised images `(B, 3, H, W)` to the outputs, in the order of `names`."""
        raise NotImplementedError


class Backbone(Part):
    """The maps of a backbone, one for each of its `out_indices`."""

    kind = 'backbone'

    def __init__(self, model: nn.Module):
        super().__init__(model.backbone)
        indices = getattr(model.backbone, 'out_indices', None)
        if indices is None:
            raise UserError(f'the backbone {type(model.backbone).__name__} does not tell its out_indices')
        self.names = [f'stage{i}' for i in indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(x))


class Classifier(Part):
    """Probabilities of the classes, `(B, classes)`."""

    kind = 'classifier'
    names = ('scores',)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.model.head(self.model.extract_feat(x)).softmax(dim=1),)


class DenseDetector(Part):
    """Raw maps of a detector's head, before anchors are decoded and non-maximum suppression.

    Of each level of the pyramid, from the finest on: `cls_score` `(B, A * classes, H, W)`, logits, and
    `bbox_pred` `(B, A * 4, H, W)` for `A` anchors a position.
    """

    kind = 'detector'

    def __init__(self, model: nn.Module):
        super().__init__(model)
        levels = len(model.bbox_head.prior_generator.strides)
        self.names = [f'{name}_{i}' for name in ('cls_score', 'bbox_pred') for i in range(levels)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        cls_scores, bbox_preds = self.model.bbox_head(self.model.extract_feat(x))
        return (*cls_scores, *bbox_preds)


class Segmentor(Part):
    """Logits of the classes at the size of the image, `(B, classes, H, W)`."""

    kind = 'segmentor'
    names = ('logits',)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = self.model.decode_head(self.model.extract_feat(x))
        size, align_corners = x.shape[2:], self.model.align_corners
        return (F.interpolate(logits, size, mode='bilinear', align_corners=align_corners),)


def part_of(model: nn.Module, backbone_only: bool = False) -> Part:
    """What can be exported of a model.

    Args:
        model: As `init_model` gives it.
        backbone_only: Its backbone only.

    Raises:
        UserError: If the model cannot be exported whole; says why and which part can be.
    """
    if backbone_only:
        return Backbone(model).eval()
    name, kinds = type(model).__name__, _class_names(model)
    if 'ImageClassifier' in kinds and 'ClsHead' in _class_names(model.head):
        return Classifier(model).eval()
    if 'EncoderDecoder' in kinds and 'BaseDecodeHead' in _class_names(model.decode_head):
        return Segmentor(model).eval()
    if 'SingleStageDetector' in kinds:
        head = type(model.bbox_head).__name__
        # others have more maps, or no anchors, to be decoded in ways of their own
        if head in ('RetinaHead', 'RetinaSepBNHead', 'RTMDetHead', 'RTMDetSepBNHead'):
            return DenseDetector(model).eval()
        raise UserError(f'{name} with its {head} cannot be exported whole; {_BACKBONE}')
    if 'TwoStageDetector' in kinds:
        raise UserError(
            f'{name} cannot be exported whole: NMS and RoIAlign stand between its parts; ' + _BACKBONE
        )
    raise UserError(
        f'{name} cannot be exported whole, only classifiers, segmentors with a decode head, RetinaNet and '
        f'RTMDet can; {_BACKBONE}'
    )


def _class_names(module: nn.Module) -> set[str]:
    """Names of its classes, so that no library is imported that the model does not need."""
    return {cls.__name__ for cls in type(module).__mro__}
