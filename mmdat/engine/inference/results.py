"""What predictions look like in files."""

import os.path as osp
from collections.abc import Mapping
from itertools import count
from typing import Any, NamedTuple

import mmengine
import numpy as np
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn

from ...apis.models import find_data
from ...demo.shapes_coco import CATEGORY_IDS
from ...errors import UserError

_LIBRARY_RESULTS = ('pred_instances', 'pred_sem_seg', 'pred_score')


class Description(NamedTuple):
    """A prediction in words that JSON has, and in pixels where it is a label map.

    Args:
        entries: One for each object of a detector, one for the image otherwise.
        label_map: `(H, W)` uint8 or uint16, of segmentors.
    """

    entries: list[dict]
    label_map: np.ndarray | None = None


class Describer:
    """Describes predictions, in the words of the data set on which the model was trained.

    Args:
        model: As `init_model` gives it.
        top_k: How many classes to give for an image, of classifiers.
    """

    def __init__(self, model: nn.Module, top_k: int = 5):
        self._meta = model.dataset_meta
        self._classes = tuple(self._meta.get('classes') or ())
        self._top_k = top_k
        self._cfg = model.cfg
        self._coco = None

    def __call__(self, result: BaseDataElement, path: str) -> Description:
        """Describes the prediction of an image.

        Raises:
            UserError: If it is none of a detector, segmentor or classifier.
        """
        if 'pred_instances' in result:
            return Description(self._describe_objects(result.pred_instances, path))
        if 'pred_sem_seg' in result:
            return self._describe_labels(result.pred_sem_seg.data[0].numpy(), path)
        if 'pred_score' in result:
            return Description([self._describe_classes(result.pred_score.numpy(), path)])
        raise UserError(
            f'the model predicts {", ".join(result.keys()) or "nothing"}, '
            f'and not {", ".join(_LIBRARY_RESULTS[:-1])} or {_LIBRARY_RESULTS[-1]}'
        )

    def _describe_objects(self, instances: BaseDataElement, path: str) -> list[dict]:
        """As COCO's format of results has them, with the names of image and category besides."""
        if self._coco is None:
            self._coco = CocoNumbers(self._cfg, self._classes)
        masks = [None] * len(instances)
        if 'masks' in instances:
            from mmdet.structures.mask import encode_mask_results

            masks = encode_mask_results(np.asarray(instances.masks))
        image_id = self._coco.image_id(path)
        entries = []
        for label, box, score, mask in zip(
            instances.labels.tolist(), instances.bboxes.tolist(), instances.scores.tolist(), masks
        ):
            left, top, right, bottom = box
            entry = dict(
                image_id=image_id,
                file_name=path,
                category_id=self._coco.category_ids[label],
                category=self._classes[label],
                bbox=[round(value, 2) for value in (left, top, right - left, bottom - top)],
                score=round(score, 5),
            )
            if mask is not None:
                entry['segmentation'] = dict(size=list(mask['size']), counts=mask['counts'].decode())
            entries.append(entry)
        return entries

    def _describe_labels(self, labels: np.ndarray, path: str) -> Description:
        """A map of the numbers that label files of the data set have, and the classes that occur in it."""
        numbers = label_numbers(self._meta, len(self._classes))
        labels = numbers[labels]
        present, pixels = np.unique(labels, return_counts=True)
        names = {number: name for number, name in zip(numbers.tolist(), self._classes)}
        found = [
            dict(id=number, name=names[number], pixels=pixels)
            for number, pixels in zip(present.tolist(), pixels.tolist())
        ]
        height, width = labels.shape
        return Description([dict(file_name=path, height=height, width=width, classes=found)], labels)

    def _describe_classes(self, scores: np.ndarray, path: str) -> dict:
        best = np.argsort(-scores, kind='stable')[: self._top_k]
        found = [
            dict(label=label, name=self._classes[label], score=round(scores[label].item(), 5))
            for label in best.tolist()
        ]
        return dict(file_name=path, predictions=found)


def label_numbers(meta: Mapping, num_classes: int) -> np.ndarray:
    """The number of each class in the label files of a data set.

    They differ from the model's where the data set calls 0 no class (`reduce_zero_label`), or where the
    classes are some of its own (`label_map`, from their numbers to the model's).
    """
    numbers = np.arange(num_classes)
    for number, label in (meta.get('label_map') or {}).items():
        if label < num_classes:
            numbers[label] = number
    numbers += bool(meta.get('reduce_zero_label'))
    return numbers.astype(np.uint8 if numbers.max(initial=0) < 256 else np.uint16)


class CocoNumbers:
    """The numbers that COCO's format has for images and categories.

    They are those of the annotation file on which the config tests, where it is there and knows the image or
    the classes. Other images are numbered on. Other classes have the numbers of COCO, or of their labels.

    Args:
        cfg: Config of the model.
        classes: Of the model, in the order of its labels.
    """

    def __init__(self, cfg: Config, classes: tuple[str, ...]):
        content = _read_annotations(find_data(cfg))
        known = {category['name']: category['id'] for category in content.get('categories') or ()}
        for ids in (known, CATEGORY_IDS):
            if classes and all(name in ids for name in classes):
                self.category_ids = [ids[name] for name in classes]
                break
        else:
            self.category_ids = list(range(len(classes)))
        self._images = {osp.basename(i['file_name']): i['id'] for i in content.get('images') or ()}
        self._next = count(max((i for i in self._images.values() if isinstance(i, int)), default=0) + 1)

    def image_id(self, path: str) -> Any:
        name = osp.basename(path)
        return self._images[name] if name in self._images else next(self._next)


def _read_annotations(dataset: Mapping) -> dict:
    path = dataset.get('ann_file') or ''
    path = osp.join(dataset.get('data_root') or '', path)
    if not path.endswith('.json') or not osp.isfile(path):
        return {}
    content = mmengine.load(path)
    return content if isinstance(content, dict) else {}
