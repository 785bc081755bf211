"""Broken data: named with the reason; a few are skipped and counted in training, none in testing."""

import io
import json
import re
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.narrow import narrow
from helpers.training import write_config
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from mmdat.engine import PreflightError, build_runner, load_config, run_tool
from mmdat.engine.checks.data import check_annotations
from mmdat.engine.data_guard import BrokenDataError, guard_data

HEIGHT, WIDTH = 24, 32
IMAGES = 6
VICTIM = 'img/3.jpg'
DATA = {
    'mmdet': dict(
        type='CocoDataset',
        ann_file='coco.json',
        data_prefix=dict(img='img/'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
    'mmseg': dict(
        type='BaseSegDataset',
        ann_file='names.txt',
        data_prefix=dict(img_path='img', seg_map_path='seg'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True),
            dict(type='PackSegInputs'),
        ],
    ),
    'mmpretrain': dict(
        type='CustomDataset',
        data_prefix='img',
        ann_file='labels.txt',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=HEIGHT),
            dict(type='PackInputs'),
        ],
    ),
}
GREY = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
PICTURE = cv2.cvtColor(GREY, cv2.COLOR_GRAY2BGR)


def encode(picture: np.ndarray | Image.Image, format_: str = '.jpg', *options, **settings) -> bytes:
    if isinstance(picture, np.ndarray):
        return cv2.imencode(format_, picture, options)[1].tobytes()
    buffer = io.BytesIO()
    picture.save(buffer, format_, **settings)
    return buffer.getvalue()


JPEG, PNG = encode(PICTURE), encode(PICTURE, '.png')
NOISE = encode(np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set of six images for all three libraries."""
    for folder in ('img', 'seg'):
        (tmp_path / folder).mkdir()
    for i in range(IMAGES):
        (tmp_path / f'img/{i}.jpg').write_bytes(JPEG)
        (tmp_path / f'seg/{i}.png').write_bytes(encode(GREY // 128, '.png'))
    (tmp_path / 'coco.json').write_text(json.dumps(coco()))
    (tmp_path / 'names.txt').write_text(''.join(f'{i}\n' for i in range(IMAGES)))
    (tmp_path / 'labels.txt').write_text(''.join(f'{i}.jpg {i % 2}\n' for i in range(IMAGES)))
    return tmp_path


def coco() -> dict:
    """An annotation file; each image holds a cat of 8 x 8 pixels."""
    box = dict(category_id=3, bbox=[4, 4, 8, 8], area=64, iscrowd=0)
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=HEIGHT, width=WIDTH) for i in range(IMAGES)],
        annotations=[
            dict(box, id=i, image_id=i, segmentation=[[4, 4, 12, 4, 12, 12, 4, 12]]) for i in range(IMAGES)
        ],
        categories=[dict(id=3, name='cat'), dict(id=5, name='dog')],
    )


def read(
    library: str,
    root: Path,
    training: bool,
    workers: int = 0,
    max_broken: float = 0.2,
    wrapper=None,
    **changes,
) -> list:
    """All samples of a data set, as a runner gets them from its dataloader."""
    # to serialise them takes half a second, for garbage collection
    dataset = dict(deepcopy(DATA[library]), data_root=str(root), serialize_data=False, **changes)
    config = dict(
        dataset=wrapper(dataset) if wrapper else dataset,
        batch_size=1,
        num_workers=workers,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    runner = SimpleNamespace(
        build_dataloader=Runner.build_dataloader,
        _train_dataloader=config if training else None,
        log_dir=str(root),
    )
    guard_data(runner, max_broken)
    with DefaultScope.overwrite_default_scope(library):
        return list(runner.build_dataloader(config))


def names(batches: list) -> list[str]:
    return [Path(batch['data_samples'][0].img_path).name for batch in batches]


def listed(root: Path) -> list[str]:
    path = root / 'broken_data.tsv'
    return path.read_text().splitlines() if path.exists() else []


def remove(path):
    path.unlink()


def put(content: bytes):
    return lambda path: path.write_bytes(content)


def put_folder(path):
    path.unlink()
    path.mkdir()


def jpeg_with_thumbnail() -> bytes:
    """The thumbnail, in the header, has an end marker of its own."""
    return JPEG[:2] + b'\xff\xe1' + (len(JPEG) + 2).to_bytes(2, 'big') + JPEG + JPEG[2:]


UNREADABLE = {
    'missing': (remove, r'cannot be read \(No such file or directory\)'),
    'a folder in its place': (put_folder, r'cannot be read \(Is a directory\)'),
    'empty': (put(b''), 'is empty'),
    'text': (put(b'<html>404 Not Found</html>'), 'is cut short or no image'),
    'zeros': (put(bytes(1000)), 'is cut short or no image'),
    'JPEG of half its length': (put(JPEG[: len(JPEG) // 2]), 'is cut short'),
    'JPEG without its end marker': (put(JPEG[:-2]), 'is cut short'),
    'JPEG without its end marker, which OpenCV reads': (put(NOISE[:-2]), 'is cut short'),
    'JPEG that ends in its header': (put(JPEG[:20]), 'is cut short'),
    'JPEG with a thumbnail, cut short': (put(jpeg_with_thumbnail()[:-50]), 'is cut short'),
    'PNG of half its length': (put(PNG[: len(PNG) // 2]), 'is cut short or no image'),
    'PNG without its end': (put(PNG[:-6]), 'is cut short or no image'),
}
READABLE = {
    'grayscale': encode(GREY),
    'CMYK': encode(Image.fromarray(PICTURE).convert('CMYK'), 'JPEG'),
    'progressive': encode(PICTURE, '.jpg', cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    'thumbnail': jpeg_with_thumbnail(),
    'bytes after its end': JPEG + bytes(100),
    '16-bit': encode(PICTURE.astype(np.uint16) * 257, '.png'),
    'alpha': encode(np.dstack([PICTURE, GREY]), '.png'),
    'grey and alpha': encode(Image.fromarray(GREY).convert('LA'), 'PNG'),
    'palette': encode(Image.fromarray(PICTURE).quantize(256), 'PNG'),
    'WebP': encode(PICTURE, '.webp'),
}
ALL = pytest.mark.parametrize('library', DATA)


@ALL
@pytest.mark.parametrize('kind', UNREADABLE)
def test_unreadable_image(library, kind, root):
    spoil, reason = UNREADABLE[kind]
    spoil(root / VICTIM)
    if 'OpenCV reads' in kind:
        assert cv2.imread(str(root / VICTIM)) is not None
    batches = read(library, root, training=True)
    assert len(batches) == IMAGES
    assert '3.jpg' not in names(batches)
    (line,) = listed(root)
    assert line.startswith(f'{root / VICTIM}\t')
    with pytest.raises(BrokenDataError, match=f'{VICTIM} {reason}: mend it') as error:
        read(library, root, training=False)
    assert '\n' not in str(error.value)


@ALL
@pytest.mark.parametrize('kind', READABLE)
@pytest.mark.parametrize('training', [True, False])
def test_unusual_image(library, kind, training, root):
    (root / VICTIM).write_bytes(READABLE[kind])
    batches = read(library, root, training)
    assert names(batches) == [f'{i}.jpg' for i in range(IMAGES)]
    image = batches[3]['inputs'][0].numpy().transpose(1, 2, 0)
    assert image.dtype == np.uint8
    assert np.abs(image - PICTURE.astype(float)).mean() < 8
    assert not listed(root)


@ALL
def test_in_workers(library, root):
    (root / VICTIM).write_bytes(b'')
    assert '3.jpg' not in names(read(library, root, training=True, workers=2))
    assert listed(root) == [f'{root / VICTIM}\tis empty']
    with pytest.raises(BrokenDataError) as error:
        read(library, root, training=False, workers=2)
    assert str(error.value) == f'{root / VICTIM} is empty: mend it, or take it out of the data set'


@ALL
def test_limit(library, root):
    for i in range(3):
        (root / f'img/{i}.jpg').write_bytes(b'')
    assert len(read(library, root, training=True, max_broken=0.5)) == IMAGES
    assert len(listed(root)) == 3
    assert len(read(library, root, training=True, max_broken=0.5)) == IMAGES, (
        'counted once, however often met'
    )
    (root / 'broken_data.tsv').unlink()
    with pytest.raises(
        BrokenDataError, match=r'3 of 6 .*, 2 may be skipped: .*0.jpg is empty; .*.jpg is empty; '
    ):
        read(library, root, training=True, max_broken=0.4)
    (root / 'broken_data.tsv').unlink()
    with pytest.raises(BrokenDataError, match='2 of 6 training images cannot be used, 1 may be skipped'):
        read(library, root, training=True, max_broken=0.01)
    (root / 'broken_data.tsv').unlink()
    with pytest.raises(BrokenDataError, match='1 of 6 training images cannot be used, 0 may be skipped'):
        read(library, root, training=True, max_broken=0)


def test_processes_count_together(root):
    for i in (0, 5):
        (root / f'img/{i}.jpg').write_bytes(b'')
    assert len(read('mmdet', root, training=True, indices=[0, 1, 2])) == 3
    with pytest.raises(BrokenDataError, match=r'2 of 3 .*0.jpg is empty; .*5.jpg is empty'):
        read('mmdet', root, training=True, indices=[3, 4, 5])


@pytest.mark.parametrize('max_broken', ['a lot', 2, -0.1, True])
def test_limit_out_of_range(max_broken, root):
    with pytest.raises(PreflightError, match=r'max_broken_images is a share .* from 0 to 1'):
        read('mmdet', root, training=True, max_broken=max_broken)


WRAPPERS = {
    'RepeatDataset': lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
    'ConcatDataset': lambda dataset: dict(type='ConcatDataset', datasets=[dataset, deepcopy(dataset)]),
    'ClassBalancedDataset': lambda dataset: dict(
        type='ClassBalancedDataset', oversample_thr=0.1, dataset=dataset
    ),
    'MultiImageMixDataset': lambda dataset: dict(
        type='MultiImageMixDataset',
        dataset=dict(dataset, pipeline=dataset['pipeline'][:2]),
        pipeline=[dict(type='Mosaic', img_scale=(HEIGHT, WIDTH)), dict(type='PackDetInputs')],
    ),
    'KFoldDataset': lambda dataset: dict(
        type='KFoldDataset', num_splits=3, fold=2, test_mode=True, dataset=dataset
    ),
}


@pytest.mark.parametrize('name', WRAPPERS)
def test_wrapped(name, root):
    library, victim = ('mmpretrain', '5.jpg') if name == 'KFoldDataset' else ('mmdet', '3.jpg')
    (root / 'img' / victim).write_bytes(b'')
    assert victim not in names(read(library, root, training=True, wrapper=WRAPPERS[name]))
    assert listed(root) == [f'{root}/img/{victim}\tis empty']
    with pytest.raises(BrokenDataError, match=f'{victim} is empty'):
        read(library, root, training=False, wrapper=WRAPPERS[name])


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('shape', [(4000, 1, 3), (1, 4000, 3)])
def test_image_that_resize_would_leave_empty(library, shape, root):
    (root / VICTIM).write_bytes(encode(np.zeros(shape, np.uint8)))
    assert '3.jpg' not in names(read(library, root, training=True))
    with pytest.raises(BrokenDataError, match=f'{VICTIM} is too long and narrow'):
        read(library, root, training=False)


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_image_turned_by_its_exif_tag(library, root):
    turned = Image.Exif()
    turned[0x0112] = 6
    (root / VICTIM).write_bytes(encode(Image.fromarray(PICTURE), 'JPEG', exif=turned))
    reason = (
        'has 32 x 24 pixels, .* says 24 x 32' if library == 'mmdet' else 'is of another size than its image'
    )
    with pytest.raises(BrokenDataError, match=reason):
        read(library, root, training=False)
    assert '3.jpg' not in names(read(library, root, training=True))
    as_stored = deepcopy(DATA[library]['pipeline'])
    as_stored[0]['color_type'] = 'color_ignore_orientation'
    assert '3.jpg' in names(read(library, root, training=False, pipeline=as_stored))


def test_box_without_area_that_reaches_the_loss(root):
    """Data sets other than COCO's do not take them out."""
    instance = dict(bbox_label=0, ignore_flag=0)
    sizes = dict(height=HEIGHT, width=WIDTH)
    entries = [
        dict(sizes, img_path=f'{i}.jpg', instances=[dict(instance, bbox=[4, 4, 12, 4 if i == 3 else 12])])
        for i in range(IMAGES)
    ]
    content = dict(metainfo=dict(classes=['cat']), data_list=entries)
    (root / 'plain.json').write_text(json.dumps(content))
    plain = dict(type='BaseDetDataset', ann_file='plain.json', data_prefix=dict(img_path='img'))
    assert '3.jpg' not in names(read('mmdet', root, training=True, **plain))
    assert 'has boxes without area' in listed(root)[0]


def test_error_that_is_not_about_a_file_names_the_image_and_stops(root):
    content = coco()
    del content['annotations'][3]['segmentation']
    (root / 'coco.json').write_text(json.dumps(content))
    pipeline = deepcopy(DATA['mmdet']['pipeline'])
    pipeline[1]['with_mask'] = True
    with pytest.raises(RuntimeError, match=f"{VICTIM} could not be prepared: KeyError: 'mask'"):
        read('mmdet', root, training=True, pipeline=pipeline)


def label_map(values: np.ndarray) -> bytes:
    return encode(values, '.png')


LABEL_MAPS = {
    'missing': (remove, 'skip', 'seg/3.png cannot be read', '1 of 6 files do not exist'),
    'cut short': (
        put(label_map(GREY)[:60]),
        'skip',
        'seg/3.png is cut short',
        'is cut short or no image: mend it',
    ),
    'of another size': (
        put(label_map(GREY[:12] // 128)),
        'skip',
        'seg/3.png is of another size',
        'has 12 x 32 pixels, and its image .*img/3.jpg 24 x 32',
    ),
    'in colour': (put(label_map(PICTURE)), 'stop', 'seg/3.png has 3 channels', 'has 3 channels'),
    'beyond the classes': (
        put(label_map(GREY // 64)),
        'stop',
        'seg/3.png has the labels 2, 3 as the model gets them, where there are 2 classes, 0 to 1, and 255',
        'has the labels 2, 3 as the model gets them, where there are 2 classes, 0 to 1, and 255',
    ),
    'beyond a byte': (
        put(label_map(np.full((HEIGHT, WIDTH), 300, np.uint16))),
        'stop',
        'seg/3.png has the labels 44',
        'has the label 300, where mmsegmentation reads 0 to 255',
    ),
    'one pixel high': (
        put(label_map(GREY[:1])),
        'stop',
        'img/3.jpg could not be prepared',
        'is one pixel wide or high',
    ),
    'nothing but ignored': (put(label_map(np.full_like(GREY, 255))), 'use', None, None),
    'palette': (put(encode(Image.fromarray(GREY // 128).convert('P'), 'PNG')), 'use', None, None),
}


@pytest.mark.parametrize('kind', LABEL_MAPS)
def test_label_map(kind, root):
    spoil, outcome, met, checked = LABEL_MAPS[kind]
    spoil(root / 'seg/3.png')
    if outcome == 'stop':
        with pytest.raises(RuntimeError, match=met):
            read('mmseg', root, training=True)
    else:
        assert ('3.jpg' in names(read('mmseg', root, training=True))) == (outcome == 'use')
    if outcome == 'use':
        read('mmseg', root, training=False)
        check('mmseg', root, split='test')
        return
    with pytest.raises(RuntimeError, match=met):
        read('mmseg', root, training=False)
    with pytest.raises(PreflightError, match=checked):
        check('mmseg', root, split='test')


HEADS = {'mmdet': 'bbox_head', 'mmseg': 'decode_head', 'mmpretrain': 'head'}


def check(library: str, root: Path, split: str = 'train', num_classes: int = 2, **changes) -> None:
    config = dict(
        default_scope=library,
        model={HEADS[library]: dict(num_classes=num_classes)},
    )
    for name in ('train', split):
        dataset = dict(deepcopy(DATA[library]), data_root=str(root), **changes)
        config[f'{name}_dataloader'] = dict(dataset=dataset)
    check_annotations(Config(config), split)


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
    'no box': (without('annotations', 4, 'bbox'), {}, r'1 of 6 annotation entries have no bbox \(4\)'),
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


def small_model(name: str, scope: str) -> torch.nn.Module:
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'))
    narrow(cfg.model)
    for node in ('decode_head', 'auxiliary_head'):
        if node in cfg.model:
            cfg.model[node].norm_cfg = dict(type='BN')
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg.model).train()


def assert_finite(model: torch.nn.Module, data: dict) -> dict:
    data = model.data_preprocessor(data, True)
    loss, parts = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return parts


@pytest.mark.parametrize('name', ['retinanet/dat_t_1x_coco', 'mask_rcnn/dat_t_1x_coco'])
@pytest.mark.parametrize('boxes', ['none', 'crowds'])
@pytest.mark.parametrize('size', [(64, 64), (1, 1), (1, 200)])
def test_detector_learns_from_images_without_objects(name, boxes, size):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    torch.manual_seed(0)
    model = small_model(name, 'mmdet')

    def instances(boxes: torch.Tensor) -> InstanceData:
        masks = BitmapMasks(np.ones((len(boxes), *size), np.uint8), *size)
        return InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long), masks=masks)

    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    sample.gt_instances = instances(torch.zeros(0, 4))
    crowd = torch.tensor([[0.0, 0.0, *reversed(size)]])
    sample.ignored_instances = instances(crowd if boxes == 'crowds' else torch.zeros(0, 4))
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    parts = assert_finite(model, dict(inputs=[image], data_samples=[sample]))
    for part in ('loss_bbox', 'loss_mask'):
        assert parts.get(part, torch.tensor(0.0)) == 0, 'there is no object to fit'


@pytest.mark.parametrize('name', ['semantic_fpn/dat_t_40k_ade20k', 'upernet/dat_t_160k_ade20k'])
@pytest.mark.parametrize('size', [(64, 64), (1, 64)])
def test_segmentor_learns_nothing_from_ignored_pixels(name, size):
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    model = small_model(name, 'mmseg')
    model.data_preprocessor.size = size
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    sample.gt_sem_seg = PixelData(data=torch.full((1, *size), 255))
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    parts = assert_finite(model, dict(inputs=[image, image], data_samples=[sample, sample]))
    assert parts['loss'] == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_training_and_testing_by_the_runner(tmp_path, capsys):
    """The whole way: workers, the limit of the config, and one line at the end."""
    path = write_config(tmp_path, 'max_broken_images = 0.2\n')
    cfg = load_config(str(path), dict(data_root=f'{tmp_path}/data/'), str(tmp_path / 'work'))
    cfg.train_dataloader.num_workers = cfg.test_dataloader.num_workers = 2
    cfg.train_cfg.max_epochs = 1
    cfg.experiment_name = 'broken_training'
    images = sorted((tmp_path / 'data/train2017').iterdir())
    images[2].write_bytes(images[2].read_bytes()[:1000])
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 4
    assert (Path(runner.log_dir) / 'broken_data.tsv').read_text() == f'{images[2]}\tis cut short\n'

    image = sorted((tmp_path / 'data/val2017').iterdir())[0]
    shutil.copyfile(path, image)
    cfg.load_from, cfg.experiment_name = str(tmp_path / 'work/epoch_1.pth'), 'broken_test'
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: build_runner(cfg).test())
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == f'error: {image} is cut short or no image: mend it, or take it out of the data set'
