"""A small drawn data set in COCO's layout: COCO configs run on it without a download."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from .shapes import Thing, draw_scene

# (first id, supercategory, names): ids run on within a row, the gaps between rows are COCO's own
CATEGORIES = (
    (1, 'person', ('person',)),
    (2, 'vehicle', ('bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat')),
    (10, 'outdoor', ('traffic light', 'fire hydrant')),
    (13, 'outdoor', ('stop sign', 'parking meter', 'bench')),
    (16, 'animal', ('bird', 'cat', 'dog', 'horse', 'sheep')),
    (21, 'animal', ('cow', 'elephant', 'bear', 'zebra', 'giraffe')),
    (27, 'accessory', ('backpack', 'umbrella')),
    (31, 'accessory', ('handbag', 'tie', 'suitcase')),
    (34, 'sports', ('frisbee', 'skis', 'snowboard', 'sports ball', 'kite')),
    (39, 'sports', ('baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket')),
    (44, 'kitchen', ('bottle',)),
    (46, 'kitchen', ('wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl')),
    (52, 'food', ('banana', 'apple', 'sandwich', 'orange', 'broccoli')),
    (57, 'food', ('carrot', 'hot dog', 'pizza', 'donut', 'cake')),
    (62, 'furniture', ('chair', 'couch', 'potted plant', 'bed')),
    (67, 'furniture', ('dining table',)),
    (70, 'furniture', ('toilet',)),
    (72, 'electronic', ('tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone')),
    (78, 'appliance', ('microwave', 'oven', 'toaster', 'sink', 'refrigerator')),
    (84, 'indoor', ('book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush')),
)
CATEGORY_IDS = {name: first + i for first, _, names in CATEGORIES for i, name in enumerate(names)}


def write_shapes_coco(
    root: str | Path,
    num_train: int = 240,
    num_val: int = 40,
    image_size: tuple[int, int] = (480, 640),
    seed: int = 0,
) -> bool:
    """Write `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json` below `root`.

    The same arguments give the same files. `root` appears only once it is complete, so an
    interrupted call leaves nothing that could be taken for a data set.

    Args:
        image_size: Height and width in pixels.

    Returns:
        True if written, False if this very data set is there already.

    Raises:
        FileExistsError: `root` holds something else.
    """
    root = Path(root).absolute()
    size = f'{image_size[0]}x{image_size[1]}'
    recipe = f'mmdat shapes: {num_train} + {num_val} images of {size}, seed {seed}'
    if root.exists() and any(root.iterdir()):
        if _description(root) == recipe:
            return False
        raise FileExistsError(
            f'{root} is not "{recipe}" but {_description(root)!r}: give another folder or remove it'
        )

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}.', dir=root.parent) as scratch:
        draft = Path(scratch) / root.name
        image_ids = range(1, num_train + num_val + 1)
        _write_split(draft, 'train2017', image_ids[:num_train], image_size, seed, recipe)
        _write_split(draft, 'val2017', image_ids[num_train:], image_size, seed, recipe)
        os.replace(draft, root)
    return True


def _description(root: Path) -> str | None:
    try:
        return json.loads((root / 'annotations/instances_val2017.json').read_text())['info']['description']
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_split(
    root: Path,
    split: str,
    image_ids: range,
    image_size: tuple[int, int],
    seed: int,
    description: str,
) -> None:
    (root / split).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    height, width = image_size
    images, annotations = [], []
    for image_id in image_ids:
        # An image depends on its own number only, not on how many were drawn before it
        pixels, things = draw_scene(np.random.default_rng((seed, image_id)), height, width)
        file_name = f'{image_id:012d}.jpg'
        if not cv2.imwrite(str(root / split / file_name), pixels, (cv2.IMWRITE_JPEG_QUALITY, 92)):
            raise OSError(f'could not write {root / split / file_name}')
        images.append(dict(license=1, file_name=file_name, height=height, width=width, id=image_id))
        annotations += [_annotation(thing, image_id, 100 * image_id + i) for i, thing in enumerate(things)]

    content = dict(
        info=dict(
            description=description,
            version='1.0',
            year=2022,
            contributor='mmdat',
            date_created='2022/06/19',
        ),
        licenses=[dict(id=1, name='Apache License 2.0', url='https://www.apache.org/licenses/LICENSE-2.0')],
        images=images,
        annotations=annotations,
        categories=[
            dict(supercategory=group, id=first + i, name=name)
            for first, group, names in CATEGORIES
            for i, name in enumerate(names)
        ],
    )
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _annotation(thing: Thing, image_id: int, annotation_id: int) -> dict:
    rows, columns = (np.flatnonzero(thing.mask.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    return dict(
        segmentation=[polygon.ravel().tolist() for polygon in outlines(thing.mask)],
        area=int(thing.mask.sum()),
        iscrowd=0,
        image_id=image_id,
        bbox=[left, top, right - left + 1, bottom - top + 1],
        category_id=CATEGORY_IDS[thing.name],
        id=annotation_id,
    )


def outlines(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The polygons (N, 2) of x, y along the pixel edges of a mask without holes.

    cv2 traces pixel centres, which loses half a pixel on every side. So it is given a lattice of
    twice the size where pixel (y, x) is the 3x3 cells around (2y + 1, 2x + 1): cells with an even
    number are the edges between pixels, and the traced centres lie on them.
    """
    lattice = np.zeros((2 * mask.shape[0] + 1, 2 * mask.shape[1] + 1), np.uint8)
    lattice[1::2, 1::2] = mask
    lattice = cv2.dilate(lattice, np.ones((3, 3), np.uint8))
    for contour in cv2.findContours(lattice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
        yield contour[:, 0] / 2
