"""Broken images and label maps, named with the reason: a few are skipped in training, none in testing."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.small_data import (
    ALL,
    DATA,
    GREY,
    HEIGHT,
    IMAGES,
    JPEG,
    PICTURE,
    PNG,
    VICTIM,
    WIDTH,
    check,
    coco,
    encode,
)
from helpers.training import write_config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image

from mmdat.engine import PreflightError, build_runner, load_config, run_tool
from mmdat.engine.data_guard import BrokenDataError, guard_data

NOISE = encode(np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))


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
