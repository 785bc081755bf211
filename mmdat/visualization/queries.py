"""Which queries to look at where none are asked for."""

import cv2
import numpy as np
from mmengine.structures import BaseDataElement

from .views import View

LEAST_SCORE = 0.3  # of a detection; below it the libraries draw none


def default_queries(view: View, prediction: BaseDataElement, count: int = 3) -> list[tuple[float, float]]:
    """Points of an image that a prediction speaks of.

    For a detector the centres of the detections of the highest scores, for a segmentor the largest connected
    segments, each at the point that is farthest from its border; for a classifier, and where nothing is
    predicted, the centre of what the network sees.

    Args:
        view: The image.
        prediction: Of the model for it, in pixels of the image.
        count: At most so many.

    Returns:
        Each `(x, y)` in pixels of the image.
    """
    rows, columns = view.shown
    points = []
    if 'pred_instances' in prediction:
        instances = prediction.pred_instances
        instances = instances[instances.scores >= LEAST_SCORE]
        order = instances.scores.argsort(descending=True)
        boxes = instances.bboxes[order].cpu().numpy().reshape(-1, 4)
        points = [(x.item(), y.item()) for x, y in (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5]
    elif 'pred_sem_seg' in prediction:
        points = _segments(prediction.pred_sem_seg.data[0].cpu().numpy(), count)
    inside = [
        (min(max(x, columns.start), columns.stop - 1), min(max(y, rows.start), rows.stop - 1))
        for x, y in points
    ]
    centre = (columns.start + columns.stop - 1) / 2, (rows.start + rows.stop - 1) / 2
    return list(dict.fromkeys(inside))[:count] or [centre]


def _segments(labels: np.ndarray, count: int) -> list[tuple[float, float]]:
    """The largest connected segments of a label map, a point in each."""
    segments = []
    for label in np.unique(labels):
        _, _, stats, _ = _parts(labels == label)
        segments += [(-area, label, part) for part, area in enumerate(stats[:, cv2.CC_STAT_AREA]) if part]
    points = []
    for _, label, part in sorted(segments)[:count]:
        mask = _parts(labels == label)[1] == part
        # the map's own border counts as one
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        points.append((float(x), float(y)))
    return points


def _parts(mask: np.ndarray) -> tuple:
    return cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
