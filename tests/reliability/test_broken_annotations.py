"""Annotations that cannot work are refused before the run; what the libraries leave out is noted."""

import json
import re

import pytest
from helpers.small_data import ALL, HEADS, VICTIM, check, coco
from mmengine.config import Config

from mmdat.engine import PreflightError
from mmdat.engine.checks.data import check_annotations


@ALL
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_good_annotations_pass_in_silence(library, split, root, capsys):
    check(library, root, split)
    assert 'note:' not in capsys.readouterr().out


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_number_of_classes(library, root):
    message = f'has 2 classes, the {HEADS[library]} of the model 80: set num_classes=2'
    with pytest.raises(PreflightError, match=message):
        check(library, root, num_classes=80)


MASKS = [dict(type='LoadAnnotations', with_mask=True)]


def edit(key: str, number: int | None = None, **values):
    """Changes one entry of a list, or all."""

    def change(content: dict) -> None:
        for entry in content[key] if number is None else [content[key][number]]:
            entry.update(values)

    return change


def without(key: str, number: int, name: str):
    return lambda content: content[key][number].pop(name)


# What is changed in the file, what in the data set, and the error.
COCO_ERRORS = {
    'no images': (lambda c: c.update(images=[]), {}, 'names no images'),
    'no annotations': (lambda c: c.update(annotations=[]), {}, 'no annotations to learn from'),
    'image without height': (
        without('images', 1, 'height'),
        {},
        r'1 of 6 image entries have no height \(1\)',
    ),
    'image ids repeat': (edit('images', 1, id=0), {}, r'1 image ids repeat \(0\)'),
    'annotation ids repeat': (edit('annotations', id=7), {}, r'1 annotation ids repeat \(7\)'),
    'category ids repeat': (edit('categories', id=3), {}, r'1 category ids repeat \(3\)'),
    'category names repeat': (edit('categories', name='cat'), {}, r'1 category names repeat \(cat\)'),
    'no metainfo': (
        lambda c: edit('categories', 0, name='shoe')(c) or edit('categories', 1, name='boot')(c),
        dict(metainfo=None),
        r'categories \(shoe, boot\) are not the classes .* \(person, bicycle, car, \.\.\.\): name',
    ),
    'misspelt class': (
        lambda c: None,
        dict(metainfo=dict(classes=('cat', 'dgo'))),
        r'its categories \(dog\) are not the classes of the data set \(dgo\)',
    ),
    'other order': (
        lambda c: c['categories'].reverse(),
        {},
        'category dog for class 0 of the data set, cat: .* in the same order',
    ),
    'first class not in the file': (
        lambda c: edit('annotations', category_id=5)(c) or c['categories'].pop(0),
        {},
        'category dog for class 0 of the data set, cat',
    ),
    'category not listed': (
        edit('annotations', 2, category_id=9),
        {},
        r'1 annotations are of categories that the file does not list, .*\(ids 2\)',
    ),
    'no box': (
        without('annotations', 4, 'bbox'),
        {},
        r'1 of 6 annotation entries have no bbox \(4\): add it to each',
    ),
    'no area': (
        without('annotations', 4, 'area'),
        {},
        r'1 of 6 annotation entries have no area \(4\): in pixels, of the mask or else of the box',
    ),
    'crowds only': (
        edit('annotations', iscrowd=1),
        {},
        r'all boxes are of crowds \(iscrowd=1\), .* iscrowd=0',
    ),
    'box of three': (edit('annotations', 4, bbox=[1, 2, 3]), {}, r'1 boxes are not four .* \(ids 4\)'),
    'box of NaN': (edit('annotations', 4, bbox=[1, 2, float('nan'), 3]), {}, r'not four finite .*\(ids 4\)'),
    'all images too small': (
        lambda c: None,
        dict(filter_cfg=dict(min_size=32)),
        'no image is left to train on, all are smaller than 32 pixels',
    ),
    'all images without objects': (
        edit('annotations', category_id=5),
        dict(num_classes=1, metainfo=dict(classes=('cat',)), filter_cfg=dict(filter_empty_gt=True)),
        'no image is left to train on, all are without annotations of the classes',
    ),
    'all boxes outside': (edit('annotations', bbox=[50, 50, 4, 4]), {}, 'all boxes lie outside'),
    'no masks': (
        without('annotations', 2, 'segmentation'),
        dict(pipeline=MASKS),
        r'1 of 6 annotations have no segmentation, and the model learns masks \(ids 2\): .*configs/retinanet',
    ),
    'mask of another size': (
        edit('annotations', 2, segmentation=dict(size=[9, 9], counts='')),
        dict(pipeline=MASKS),
        r'1 masks are not of the size of their images \(ids 2\)',
    ),
    'images elsewhere': (
        lambda c: None,
        dict(data_prefix=dict(img='seg/')),
        r'6 of 6 files do not exist \(.*seg/0.jpg, .*1.jpg, .*2.jpg, \.\.\.\)',
    ),
    'prefix without images': (
        lambda c: None,
        dict(data_prefix=dict()),
        "data_prefix=dict\\(img='FOLDER/'\\)",
    ),
}


@pytest.mark.parametrize('kind', COCO_ERRORS)
def test_annotation_file_of_coco(kind, root):
    change, changes, message = COCO_ERRORS[kind]
    content = coco()
    change(content)
    (root / 'coco.json').write_text(json.dumps(content))
    with pytest.raises(PreflightError, match=message) as error:
        check('mmdet', root, **changes)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [('', 'is no JSON, or cut short'), (json.dumps(coco())[:500], 'or cut short'), ('[]', 'format of COCO')],
)
def test_file_that_is_not_of_coco(text, message, root):
    (root / 'coco.json').write_text(text)
    with pytest.raises(PreflightError, match=f'train data {root}/coco.json: .*{message}'):
        check('mmdet', root)


# What mmdet leaves out without a word: the run goes on, with a note.
COCO_NOTES = {
    'more categories': (
        lambda c: c['categories'].append(dict(id=9, name='cow')),
        r'1 categories are no class of the data set and left out \(cow\)',
    ),
    'last class not in the file': (
        lambda c: c['categories'].pop(),
        r'1 classes are no category of the file \(dog\)',
    ),
    'box outside': (edit('annotations', 4, bbox=[40, 4, 8, 8]), r'1 of 6 boxes lie outside .*\(ids 4\)'),
    'box without area': (edit('annotations', 4, bbox=[4, 4, 0, 8]), r'1 of 6 boxes .*\(ids 4\)'),
    'image not listed': (
        lambda c: c['annotations'].append(dict(c['annotations'][4], id=9, image_id=99)),
        '1 annotations are of images that the file does',
    ),
    'image without objects': (
        lambda c: c['annotations'].pop(),
        r'1 of 6 images have no annotations of its classes and are left out; .*filter_empty_gt=False',
    ),
    'small image': (edit('images', 4, height=8), '1 of 6 images are smaller than 16 pixels and left out'),
    'missing file': (
        edit('images', 4, file_name='9.jpg'),
        r'1 of 6 files do not exist \(.*9.jpg\), training',
    ),
}


@pytest.mark.parametrize('kind', COCO_NOTES)
def test_what_is_left_out_is_noted(kind, root, capsys):
    change, note = COCO_NOTES[kind]
    content = coco()
    change(content)
    (root / 'coco.json').write_text(json.dumps(content))
    check('mmdet', root, filter_cfg=dict(filter_empty_gt=True, min_size=16))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if 'note:' in line)
    assert line.startswith(f'note: train data {root}/coco.json: ')
    assert re.search(note, line)


def test_crowds_only_in_a_test(root, capsys):
    content = coco()
    edit('annotations', iscrowd=1)(content)
    (root / 'coco.json').write_text(json.dumps(content))
    check('mmdet', root, split='test')
    assert 'note: test data' in (noted := capsys.readouterr().out)
    assert 'all boxes are of crowds (iscrowd=1), which are neither learned nor scored' in noted
    without('annotations', 4, 'iscrowd')(content)
    (root / 'coco.json').write_text(json.dumps(content))
    with pytest.raises(PreflightError, match=r'have no iscrowd \(4\): pycocotools needs it, 0 for single'):
        check('mmdet', root, split='test')


@ALL
def test_testing_needs_all_files(library, root):
    (root / VICTIM).unlink()
    with pytest.raises(PreflightError, match=r'1 of 6 files do not exist \(.*img/3.jpg\)'):
        check(library, root, split='val')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'names no images'),
        ('0.jpg cat\n1.jpg\n', r'2 of 2 lines are not "FILE NUMBER" \(0.jpg cat, 1.jpg\)'),
        ('0.jpg 0\n1.jpg 2\n', r'1 labels are beyond the 2 classes of the model, 0 to 1 \(1.jpg\)'),
        ('7.jpg 0\n8.jpg 1\n', r'2 of 2 files do not exist \(.*7.jpg, .*8.jpg\)'),
    ],
)
def test_list_of_a_classifier(text, message, root):
    (root / 'labels.txt').write_text(text)
    with pytest.raises(PreflightError, match=message):
        check('mmpretrain', root)


def test_folders_of_a_classifier(tmp_path, capsys):
    for name in ('train/cat', 'train/dog', 'val/cow', 'val/dog'):
        (tmp_path / name).mkdir(parents=True)
    data = dict(type='CustomDataset', data_root=str(tmp_path))
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(head=dict(num_classes=2)),
            train_dataloader=dict(dataset=dict(data, data_prefix='train')),
            val_dataloader=dict(dataset=dict(data, data_prefix='val')),
        )
    )
    with pytest.raises(PreflightError, match=r'train: holds no images \(\.jpg, \.jpeg'):
        check_annotations(cfg, 'train')
    for name in ('train/cat/1.JPG', 'val/dog/1.png'):
        (tmp_path / name).touch()
    check_annotations(cfg, 'train')
    assert '1 of 2 classes have no images (dog)' in capsys.readouterr().out
    with pytest.raises(PreflightError, match=r'val: its folders are not those of .*train \(cat, cow\)'):
        check_annotations(cfg, 'val')
    cfg.model.head.num_classes = 1000
    with pytest.raises(PreflightError, match='has 2 classes, the head of the model 1000'):
        check_annotations(cfg, 'train')
    (tmp_path / 'train/.ipynb_checkpoints').mkdir()
    with pytest.raises(PreflightError, match=r'its folder \.ipynb_checkpoints would be a class: remove it'):
        check_annotations(cfg, 'train')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(img_suffix='.tif', ann_file=''), r'img: holds no images \*\.tif'),
        (dict(metainfo=None), r'names no classes: metainfo=dict\(classes'),
        (dict(data_prefix=dict(img_path='img')), 'does not say where the label maps are'),
        (dict(data_prefix=dict(img_path='img', seg_map_path='img')), '6 of 6 files do not exist'),
    ],
)
def test_data_set_of_a_segmentor(changes, message, root):
    with pytest.raises(PreflightError, match=message):
        check('mmseg', root, **changes)
