import json

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmdat.demo import write_shapes_coco
from mmdat.demo.shapes import MIN_VISIBLE, draw_scene
from mmdat.demo.shapes_coco import CATEGORY_IDS, outlines
from mmdat.engine import load_config

SIZE = (120, 160)
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids that COCO dropped


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    assert write_shapes_coco(root, num_train=6, num_val=2, image_size=SIZE)
    return root


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_layout(root):
    names = [f'{i:012d}.jpg' for i in range(1, 9)]
    expected = {f'train2017/{name}' for name in names[:6]} | {f'val2017/{name}' for name in names[6:]}
    expected |= {'annotations/instances_train2017.json', 'annotations/instances_val2017.json'}
    assert set(map(str, files(root))) == expected
    content = json.loads((root / 'annotations/instances_val2017.json').read_text())
    assert set(content) == {'info', 'licenses', 'images', 'annotations', 'categories'}
    assert [image['file_name'] for image in content['images']] == names[6:]
    assert cv2.imread(str(root / 'val2017' / names[6])).shape == (*SIZE, 3)


def test_categories_are_those_of_coco():
    init_default_scope('mmdet')
    with DATASETS.switch_scope_and_registry('mmdet') as datasets:
        assert tuple(CATEGORY_IDS) == datasets.get('CocoDataset').METAINFO['classes']
    assert list(CATEGORY_IDS.values()) == sorted(set(range(1, 91)) - GAPS)


def test_same_seed_same_files(root, tmp_path):
    write_shapes_coco(tmp_path / 'again', 6, 2, SIZE)
    write_shapes_coco(tmp_path / 'other', 6, 2, SIZE, seed=1)
    assert files(tmp_path / 'again') == files(root)
    assert not set(files(tmp_path / 'other').values()) & set(files(root).values())


@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_annotations_are_the_visible_masks(root, split):
    coco = COCO(root / f'annotations/instances_{split}.json')
    for image_id in coco.getImgIds():
        _, things = draw_scene(np.random.default_rng((0, image_id)), *SIZE)
        annotations = coco.imgToAnns[image_id]
        assert len(annotations) == len(things) >= 1
        assert not np.any(np.sum([thing.mask for thing in things], axis=0) > 1)
        for annotation, thing in zip(annotations, things):
            np.testing.assert_array_equal(coco.annToMask(annotation), thing.mask)
            assert annotation['area'] == thing.mask.sum() >= MIN_VISIBLE * thing.full_area
            tight = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(thing.mask, np.uint8)))
            assert annotation['bbox'] == tight.tolist()
            assert annotation['category_id'] == CATEGORY_IDS[thing.name]


def test_outlines_follow_pixel_edges():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = mask[4, 0] = True
    corners = {frozenset(map(tuple, polygon)) for polygon in outlines(mask)}
    assert corners == {
        frozenset([(2, 1), (5, 1), (5, 3), (2, 3)]),
        frozenset([(0, 4), (1, 4), (1, 5), (0, 5)]),
    }


def test_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cv2, 'imwrite', fail)
    with pytest.raises(KeyboardInterrupt):
        write_shapes_coco(tmp_path / 'shapes', 2, 1, SIZE)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    assert write_shapes_coco(tmp_path / 'shapes', 2, 1, SIZE)


def test_complete_data_is_reused_and_other_data_kept(root):
    before = files(root)
    assert not write_shapes_coco(root, 6, 2, SIZE)
    with pytest.raises(FileExistsError, match='7 \\+ 2 images'):
        write_shapes_coco(root, 7, 2, SIZE)
    assert files(root) == before


def test_unmodified_coco_config_loads_it(root, tmp_path):
    (tmp_path / 'coco.py').write_text("_base_ = 'mmdet::_base_/datasets/coco_instance.py'")
    cfg = load_config(str(tmp_path / 'coco.py'), {'data_root': str(root)})
    init_default_scope('mmdet')
    for dataloader, number in ((cfg.train_dataloader, 6), (cfg.val_dataloader, 2)):
        dataset = DATASETS.build(dataloader.dataset)
        assert len(dataset) == number
        instances = dataset[0]['data_samples'].gt_instances
        assert len(instances.masks) == len(instances.bboxes) >= 1
