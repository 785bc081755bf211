"""Which images are meant, and how labels, categories and images are numbered in files."""

import json
import os

import numpy as np
import pytest
import torch
from helpers.predictors import write_image
from mmengine.config import Config

from mmdat.engine.inference.folder import ResultError, ResultFolder
from mmdat.engine.inference.results import CocoNumbers, Describer, label_numbers
from mmdat.errors import UserError
from mmdat.input_files import find_images


@pytest.fixture
def files(tmp_path, monkeypatch):
    names = (
        'a/x.jpg a/x.PNG a/b/x.jpg a/b/y.webp a/.hidden.jpg a/.cache/z.jpg a/notes.txt b/x.jpg c/deep/z.png'
    )
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ('names', 'recursive', 'found'),
    [
        (['a'], False, {'a/x.PNG': 'x', 'a/x.jpg': 'x_2'}),
        (['a'], True, {'a/x.PNG': 'x', 'a/x.jpg': 'x_2', 'a/b/x.jpg': 'b/x', 'a/b/y.webp': 'b/y'}),
        (['b/x.jpg', 'a/x.jpg', 'b'], False, {'b/x.jpg': 'x', 'a/x.jpg': 'x_2'}),
        (['a/notes.txt'], False, {'a/notes.txt': 'notes'}),
        (['a/*'], False, {'a/x.PNG': 'x', 'a/x.jpg': 'x_2'}),
        (['./a/**/x.j*g'], False, {'./a/b/x.jpg': 'b/x', './a/x.jpg': 'x'}),
        (['**/x.jpg'], False, {'a/b/x.jpg': 'a/b/x', 'a/x.jpg': 'a/x', 'b/x.jpg': 'b/x'}),
    ],
)
def test_files_folders_and_patterns(files, names, recursive, found):
    images, problems = find_images(names, recursive)
    assert dict(images) == found
    assert list(dict(images)) == list(found)
    assert not problems


def test_names_without_images(files):
    images, problems = find_images(['none.jpg', 'empty', 'c', '*.gif', 'b'])
    assert dict(images) == {'b/x.jpg': 'x'}
    assert problems == [
        'none.jpg does not exist',
        'empty holds no images',
        'c holds no images itself: --recursive takes those of its sub-folders',
        '*.gif matches no images',
    ]


def test_results_are_no_input(files):
    images, _ = find_images(['a'], recursive=True, but='a/../a/b')
    assert list(dict(images)) == ['a/x.PNG', 'a/x.jpg']
    images, _ = find_images(['**/x.*'], but='a/b')
    assert list(dict(images)) == ['a/x.PNG', 'a/x.jpg', 'b/x.jpg']
    images, _ = find_images(['a/x.*'], but='a')  # results beside the images
    assert list(dict(images)) == ['a/x.PNG', 'a/x.jpg']


@pytest.mark.parametrize(
    ('meta', 'numbers'),
    [
        ({}, [0, 1, 2]),
        (dict(reduce_zero_label=True), [1, 2, 3]),
        (dict(label_map={0: 255, 1: 2, 2: 255, 3: 0, 4: 1}), [3, 4, 1]),
        (dict(label_map={0: 255, 1: 2, 2: 255, 3: 0, 4: 1}, reduce_zero_label=True), [4, 5, 2]),
    ],
)
def test_labels_are_numbered_as_in_label_files(meta, numbers):
    found = label_numbers(meta, 3)
    assert found.tolist() == numbers
    assert found.dtype == np.uint8


def test_label_maps_are_read_back_by_mmseg(tmp_path):
    """Numbers that the training would read as the same labels."""
    from mmseg.datasets.transforms import LoadAnnotations

    meta = dict(label_map={0: 255, 1: 2, 2: 255, 3: 0, 4: 1})
    labels = np.random.default_rng(0).integers(0, 3, (7, 9))
    folder = ResultFolder(str(tmp_path))
    folder.write_picture('map.png', label_numbers(meta, 3)[labels])
    results = dict(seg_map_path=str(tmp_path / 'map.png'), seg_fields=[], reduce_zero_label=False, **meta)
    assert np.array_equal(LoadAnnotations().transform(results)['gt_seg_map'], labels)


def test_many_labels_need_two_bytes():
    assert label_numbers({}, 300).dtype == np.uint16


CATEGORIES = [dict(id=7, name='cup'), dict(id=5, name='bowl')]
IMAGES = [dict(id=40, file_name='x.jpg'), dict(id=12, file_name='sub/y.jpg')]


def coco_config(tmp_path, content):
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='ann.json')
    return Config(dict(test_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dataset))))


def test_numbers_of_the_annotation_file(tmp_path):
    numbers = CocoNumbers(coco_config(tmp_path, dict(categories=CATEGORIES, images=IMAGES)), ('bowl', 'cup'))
    assert numbers.category_ids == [5, 7]
    assert [numbers.image_id(f'elsewhere/{name}.jpg') for name in 'xzyw'] == [40, 41, 12, 42]


def test_numbers_without_the_annotation_file():
    assert CocoNumbers(Config(), ('bowl', 'cup')).category_ids == [51, 47]  # COCO's
    numbers = CocoNumbers(Config(), ('bowl', 'daisy'))
    assert numbers.category_ids == [0, 1]
    assert [numbers.image_id(f'{name}.jpg') for name in 'xy'] == [1, 2]


def test_what_is_none_of_the_three():
    class Model:
        cfg, dataset_meta = {}, {}

    from mmengine.structures import BaseDataElement

    with pytest.raises(
        UserError, match='the model predicts pred_depth_map, and not pred_instances, pred_sem'
    ):
        Describer(Model)(BaseDataElement(pred_depth_map=torch.zeros(1)), 'x.jpg')


def test_results_are_whole_or_absent(tmp_path, monkeypatch):
    folder = ResultFolder(str(tmp_path / 'out'))
    folder.write_json('predictions/x', [dict(a=1), dict(b=2)])
    assert (tmp_path / 'out/predictions/x.json').read_text() == '[\n{"a": 1},\n{"b": 2}\n]\n'

    def fail(*args):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(ResultError, match=r'x\.json cannot be written: Input/output error'):
        folder.write_json('predictions/x', [])
    assert json.loads((tmp_path / 'out/predictions/x.json').read_text()) == [dict(a=1), dict(b=2)]
    assert [path.name for path in (tmp_path / 'out/predictions').iterdir()] == ['x.json']


def test_folders_that_cannot_be_written(tmp_path):
    write_image(tmp_path / 'file.png')
    with pytest.raises(UserError, match=r'folder .*file\.png cannot be written: File exists'):
        ResultFolder(str(tmp_path / 'file.png'))
    with pytest.raises(UserError, match='cannot be written: Not a directory'):
        ResultFolder(str(tmp_path / 'file.png' / 'below'))
