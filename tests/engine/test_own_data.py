"""Configs of `configs/custom`: what follows from a user's data, and what is said where it cannot."""

import json
import re
import shutil
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.narrow import narrow, narrow_detector
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmdat.engine import (
    PreflightError,
    build_runner,
    enable_amp,
    enable_visualization,
    follow_data,
    load_config,
    preflight,
    resume,
)
from mmdat.engine.checks.data import heads
from mmdat.engine.own_data import colours, find_class_weights, set_num_classes, settings_of

CUSTOM = ROOT / 'configs/custom'
CATEGORIES = {70: 'cat', 3: 'dog', 41: 'traffic light'}  # ids in no order, with gaps
HEIGHT, WIDTH = 48, 64


def box(id_: int, image: int, category: int, **more) -> dict:
    x, y = 4 * id_, 2 * id_
    polygon = [[x, y, x + 20, y, x + 20, y + 16, x, y + 16]]
    entry = dict(id=id_, image_id=image, category_id=category, bbox=[x, y, 20, 16], area=320, iscrowd=0)
    return entry | dict(segmentation=polygon) | more


def annotations(*, crowd: bool = True) -> dict:
    """Four images: two with objects, one with a crowd, one with nothing."""
    runs = dict(size=[HEIGHT, WIDTH], counts=[0, HEIGHT * WIDTH // 2, HEIGHT * WIDTH // 2])
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=HEIGHT, width=WIDTH) for i in (9, 2, 5, 7)],
        annotations=[
            box(1, 9, 70),
            box(2, 9, 41),
            box(3, 2, 3),
            box(4, 5, 70, segmentation=runs, iscrowd=int(crowd)),
        ],
        categories=[dict(id=id_, name=name) for id_, name in CATEGORIES.items()],
    )


@pytest.fixture(autouse=True)
def unformatted(monkeypatch):
    """Configs are saved as they are: to format one takes a second."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))


def picture(path: Path, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise if values is None else values).save(path)


@pytest.fixture
def coco(tmp_path) -> Path:
    """Data in COCO's format."""
    root = tmp_path / 'my_data'
    for split in ('train', 'val'):
        content = annotations()
        for image in content['images']:
            picture(root / split / image['file_name'])
        (root / 'annotations').mkdir(exist_ok=True)
        dump(content, root / f'annotations/{split}.json')
    return root


@pytest.fixture
def maps(tmp_path) -> Path:
    """Images and label maps of three classes."""
    root = tmp_path / 'my_data'
    labels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 3
    for split in ('training', 'validation'):
        for i in range(3):
            picture(root / f'images/{split}/{i}.png')
            picture(root / f'annotations/{split}/{i}.png', labels)
    (root / 'classes.txt').write_text('sky\nroad\n\ntraffic light\n')
    return root


@pytest.fixture
def folders(tmp_path) -> Path:
    """Images in two folders."""
    root = tmp_path / 'my_data'
    for split in ('train', 'val'):
        for name in ('dog', 'cat'):
            picture(root / split / name / '1.jpg')
    return root


def custom(name: str, root: Path, training: bool = True, load_from: Path | None = None, **options) -> Config:
    """A config of `configs/custom`, completed, with a small backbone and without a file of its own."""
    options = {key.replace('__', '.'): value for key, value in options.items()}
    cfg = load_config(str(CUSTOM / f'{name}.py'), {'data_root': str(root), **options}, str(root / 'work'))
    cfg.load_from = load_from and str(load_from)
    follow_data(cfg, training)
    narrow(cfg.model)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    return cfg


def classes_of(cfg: Config) -> list[list[str]]:
    splits = ('train', 'val', 'test')
    return [list(cfg[f'{split}_dataloader'].dataset.metainfo.classes) for split in splits]


def numbers(cfg: Config) -> dict[str, int]:
    return {name: head.num_classes for name, head in heads(cfg.model)}


MASK_RCNN, RETINANET = 'mask_rcnn_dat_t_coco_format', 'retinanet_dat_t_coco_format'
UPERNET, CLASSIFIER = 'upernet_dat_t_folders', 'classifier_dat_t_folders'


@pytest.mark.parametrize('name', [MASK_RCNN, RETINANET])
def test_coco_format(name, coco):
    cfg = custom(name, coco)
    names = list(CATEGORIES.values())
    assert cfg.classes == names
    assert classes_of(cfg) == [names] * 3
    assert set(numbers(cfg).values()) == {3}
    assert len(numbers(cfg)) == (2 if name == MASK_RCNN else 1)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.ann_file == f'{coco}/annotations/val.json'
    assert len(cfg.val_dataloader.dataset.metainfo.palette) == 3
    preflight(cfg, training=True)


def test_a_class_without_annotations(coco, capsys):
    """Such as the category 0 that stands for all others, which some tools export."""
    preflight(custom(RETINANET, coco), training=True)
    assert 'have no annotations (' not in capsys.readouterr().out
    for split in ('train', 'val'):
        path = coco / f'annotations/{split}.json'
        content = json.loads(path.read_text())
        content['categories'].append(dict(id=0, name='all'))
        path.write_text(json.dumps(content))
    preflight(custom(RETINANET, coco), training=True)
    assert '1 of 4 classes have no annotations (all)' in capsys.readouterr().out


def test_both_detectors_have_the_same_settings():
    """They stand in each config, where a reader looks for them."""
    one, other = (Config.fromfile(CUSTOM / f'{name}.py') for name in (MASK_RCNN, RETINANET))
    shared = [name for name in settings_of(one) if name in one]
    assert len(shared) == 8
    assert {name: one[name] for name in shared} == {name: other[name] for name in shared}


def test_label_maps(maps):
    cfg = custom(UPERNET, maps)
    names = ['sky', 'road', 'traffic light']
    assert cfg.classes == names
    assert classes_of(cfg) == [names] * 3
    assert numbers(cfg) == {'decode_head': 3, 'auxiliary_head': 3}
    assert cfg.train_dataloader.dataset.img_suffix == cfg.test_dataloader.dataset.img_suffix == '.png'
    preflight(cfg, training=True)


def test_class_folders(folders):
    cfg = custom(CLASSIFIER, folders)
    assert cfg.classes == ['cat', 'dog']
    assert classes_of(cfg) == [['cat', 'dog']] * 3
    assert numbers(cfg) == {'head': 2}
    assert cfg.data_preprocessor.num_classes == 2
    preflight(cfg, training=True)


def test_all_stages_of_a_cascade():
    cfg = Config.fromfile(ROOT / 'configs/cascade_mask_rcnn/dat_t_1x_coco.py')
    set_num_classes(cfg, 7)
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [7, 7, 7]
    assert cfg.model.roi_head.mask_head.num_classes == 7
    assert 'num_classes' not in cfg.model.rpn_head


def test_settings_of_the_command_line(coco):
    (coco / 'train').rename(coco / 'images')
    (coco / 'annotations/val.json').rename(coco / 'v.json')
    cfg = custom(MASK_RCNN, coco, train_images='images', val_annotations='v.json', max_epochs=3)
    assert cfg.train_dataloader.dataset.data_prefix.img == 'images'
    assert cfg.val_dataloader.dataset.ann_file == cfg.test_dataloader.dataset.ann_file == 'v.json'
    assert cfg.test_evaluator.ann_file == f'{coco}/v.json'
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[-1].end) == (3, 3)
    assert cfg.param_scheduler[0].end == 1, 'the warm-up stays'


def test_settings_of_the_libraries_come_first(coco):
    where = f'{coco}/train.json'
    shutil.copy(coco / 'annotations/train.json', where)
    cfg = custom(MASK_RCNN, coco, train_dataloader__dataset__ann_file=where, train_cfg__max_epochs=5)
    assert cfg.train_dataloader.dataset.ann_file == where
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[-1].end) == (5, 5)


def test_false_is_a_setting(maps):
    """What a data set states stays, also where it is False; the command line comes before."""
    config = maps / 'config.py'
    data = 'train_dataloader = dict(dataset=dict(reduce_zero_label=False))'
    config.write_text(f'_base_ = "{CUSTOM}/{UPERNET}.py"\nreduce_zero_label = True\n{data}\n')
    cfg = load_config(str(config), {})
    assert cfg.train_dataloader.dataset.reduce_zero_label is False
    assert cfg.val_dataloader.dataset.reduce_zero_label is True
    cfg = load_config(str(config), {'reduce_zero_label': True})
    assert cfg.train_dataloader.dataset.reduce_zero_label is True


def test_names_of_classes_from_windows(maps):
    """A mark at the start, two letters at the ends of lines, commas, spaces, other alphabets."""
    text = '\ufeffhimmel, blau\r\nStraße\r\n信号\r\n'
    (maps / 'classes.txt').write_bytes(text.encode())
    assert custom(UPERNET, maps).classes == ['himmel, blau', 'Straße', '信号']


@pytest.mark.parametrize(('stated', 'names'), [(['cat', 'dog'], ['cat', 'dog']), ('dog', ['dog'])])
def test_stated_classes(stated, names, coco, capsys):
    cfg = custom(MASK_RCNN, coco, classes=stated)
    assert classes_of(cfg) == [names] * 3
    assert set(numbers(cfg).values()) == {len(names)}
    preflight(cfg, training=True)
    assert 'categories are no class of the data set and left out' in capsys.readouterr().out


def test_a_saved_config_needs_no_data(coco):
    cfg = custom(MASK_RCNN, coco)
    cfg.dump(coco / 'saved.py')
    other = coco / 'other.json'
    (coco / 'annotations/val.json').rename(other)
    shutil.rmtree(coco / 'annotations')
    saved = load_config(str(coco / 'saved.py'), work_dir=cfg.work_dir)
    follow_data(saved, training=False)
    assert saved.to_dict() == cfg.to_dict()
    saved = load_config(str(coco / 'saved.py'), dict(val_annotations='other.json'))
    follow_data(saved, training=False)
    assert saved.test_dataloader.dataset.ann_file == 'other.json'
    assert saved.test_evaluator.ann_file == str(other)
    assert classes_of(saved)[2] == list(CATEGORIES.values())


def test_a_tested_checkpoint_states_the_classes(coco, folders):
    path = coco / 'epoch_1.pth'
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=dict(classes=('x', 'y')))), path)
    (coco / 'annotations/train.json').unlink()
    cfg = custom(MASK_RCNN, coco, training=False, load_from=path)
    assert classes_of(cfg) == [['x', 'y']] * 3
    cfg = custom(CLASSIFIER, folders, training=False, load_from=path)
    with pytest.raises(PreflightError, match='val: its folder cat would be class x of the model'):
        preflight(cfg, training=False)


def test_a_training_does_not_go_on_on_other_classes(folders):
    cfg = custom(CLASSIFIER, folders)
    meta = dict(cfg=cfg.pretty_text, experiment_name=CLASSIFIER, time='1', iter=1, seed=1)
    path = folders / 'work/epoch_1.pth'
    path.parent.mkdir()
    torch.save(dict(meta=meta, state_dict={'x': torch.zeros(3)}, message_hub={}), path)
    (folders / 'work/last_checkpoint').write_text(str(path))
    resume(cfg, 'auto')
    assert cfg.resume
    (folders / 'train/cat').rename(folders / 'train/cow')
    with pytest.raises(PreflightError, match=r'of a run on other classes \(cat, cow\)'):
        resume(custom(CLASSIFIER, folders), 'auto')


def test_colours():
    several = colours(200)
    assert len(set(several)) == 200
    assert all(0 <= part <= 255 for colour in several for part in colour)
    distances = [sum(abs(a - b) for a, b in zip(*pair)) for pair in pairwise(several)]
    assert min(distances) > 100


def spoil(name: str, root: Path) -> None:
    train = root / 'annotations/train.json'
    content = annotations()
    if name == 'no file':
        train.unlink()
    elif name == 'no JSON':
        train.write_text('{')
    elif name == 'no categories':
        dump(content | dict(categories=[]), train)
    elif name == 'names repeat':
        content['categories'][0]['name'] = 'dog'
        dump(content, train)


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('no file', r'train\.json: the annotation file does not exist: .*top of the config.*data_root=DIR'),
        ('no JSON', r'train\.json: is no JSON'),
        ('no categories', r'train\.json: lists no categories'),
        ('names repeat', r'1 category names repeat \(dog\)'),
    ],
)
def test_categories_that_cannot_be_read(what, message, coco):
    spoil(what, coco)
    with pytest.raises(PreflightError, match=message) as error:
        custom(MASK_RCNN, coco)
    assert '\n' not in str(error.value)


def test_classes_that_cannot_be_told_apart(coco, maps, folders):
    with pytest.raises(PreflightError, match='classes must be names that differ'):
        custom(MASK_RCNN, coco, classes=['cat', 'cat'])
    (maps / 'classes.txt').write_text('sky\nsky\n')
    with pytest.raises(PreflightError, match=r'classes\.txt must name each class once'):
        custom(UPERNET, maps)
    (maps / 'classes.txt').unlink()
    with pytest.raises(PreflightError, match=r'classes\.txt cannot be read .*classes=NAME,NAME'):
        custom(UPERNET, maps)
    with pytest.raises(PreflightError, match='train_none: the folder does not exist'):
        custom(CLASSIFIER, folders, train_images='train_none')
    with pytest.raises(PreflightError, match='has no folders, where each class needs one'):
        custom(CLASSIFIER, folders, train_images='train/cat')


def test_images_of_several_suffixes(maps):
    picture(maps / 'images/training/9.jpg')
    with pytest.raises(PreflightError, match=r'several suffixes \(.*1 \*\.jpg.*image_suffix='):
        custom(UPERNET, maps)
    assert custom(UPERNET, maps, image_suffix='.png').train_dataloader.dataset.img_suffix == '.png'


def test_misspelt_settings(coco, tmp_path):
    with pytest.raises(PreflightError, match=r"'train_imges' .*did you mean 'train_images'"):
        custom(MASK_RCNN, coco, train_imges='train')
    (tmp_path / 'own.py').write_text(f"_base_ = '{CUSTOM}/{MASK_RCNN}.py'\ndata_format = 'coko'\n")
    with pytest.raises(PreflightError, match=r"data_format must be .*got 'coko', did you mean 'coco'"):
        load_config(str(tmp_path / 'own.py'))


# What is wrong with the data of which config, and the line that says so.
BAD_DATA = {
    'annotations without masks': (MASK_RCNN, 'have no segmentation, and the model learns masks'),
    'categories that do not match': (
        MASK_RCNN,
        r'categories \(dog, traffic light\) are not the classes .* \(cow\): .*classes=NAME,NAME`$',
    ),
    'empty training set': (RETINANET, 'no image is left to train on'),
    'label map of another size': (UPERNET, 'has 9 x 64 pixels, and its image .* 48 x 64'),
    'labels beyond the classes': (
        UPERNET,
        'has the labels 2 .*, where there are 2 classes, 0 to 1',
    ),
    'class without a folder': (CLASSIFIER, 'has 2 folders, and the data set 3 classes'),
}


@pytest.mark.parametrize('kind', BAD_DATA)
def test_preflight_tells_bad_data_before_weights_are_read(kind, request):
    name, message = BAD_DATA[kind]
    format_ = {UPERNET: 'maps', CLASSIFIER: 'folders'}.get(name, 'coco')
    root, options, content = request.getfixturevalue(format_), {}, annotations()
    if kind == 'annotations without masks':
        for entry in content['annotations']:
            del entry['segmentation']
    elif kind == 'categories that do not match':
        options = dict(classes=['cat', 'cow'])
    elif kind == 'empty training set':
        content['images'] = [dict(image, height=20, width=20) for image in content['images']]
        options = dict(train_dataloader__dataset__filter_cfg=dict(min_size=32))
    elif kind == 'label map of another size':
        picture(root / 'annotations/training/1.png', np.zeros((9, WIDTH), np.uint8))
    elif kind == 'labels beyond the classes':
        options = dict(classes=['sky', 'road'])
    elif kind == 'class without a folder':
        options = dict(classes=['cat', 'cow', 'dog'])
    if format_ == 'coco':
        dump(content, root / 'annotations/train.json')
    cfg = custom(name, root, load_from=root / 'not_there.pth', **options)
    with pytest.raises(PreflightError, match=message) as error:
        preflight(cfg, training=True)
    assert '\n' not in str(error.value)
    assert 'not_there.pth' not in str(error.value)


ROWS = {
    MASK_RCNN: {
        'roi_head.bbox_head.fc_cls': 1,
        'roi_head.bbox_head.fc_reg': 4,
        'roi_head.mask_head.conv_logits': 1,
    },
    RETINANET: {'bbox_head.retina_cls': 9},  # of 9 anchors
    UPERNET: {'decode_head.conv_seg': 1, 'auxiliary_head.conv_seg': 1},
    CLASSIFIER: {'head.fc': 1},
}


@pytest.mark.parametrize('name', ROWS)
def test_weights_that_grow_with_the_classes(name, request):
    cfg = custom(name, request.getfixturevalue({UPERNET: 'maps', CLASSIFIER: 'folders'}.get(name, 'coco')))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        found = find_class_weights(cfg)
    assert found.number == len(cfg.classes)
    assert found.rows == {
        f'{key}.{kind}': rows for key, rows in ROWS[name].items() for kind in ('weight', 'bias')
    }


def detector(cfg: Config, classes: int) -> dict[str, torch.Tensor]:
    """Weights of the config's model for another number of classes."""
    other = Config(dict(model=deepcopy(cfg.model)))
    set_num_classes(other, classes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(other.model).state_dict()


@pytest.fixture
def log(monkeypatch):
    """What the hook that loads checkpoints tells."""
    told = []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text, *args, **kwargs: told.append(str(text)))
    return told


def test_from_a_detector_of_other_classes_to_a_tested_one(coco, log):
    """A training starts from 80 classes; its result is tested where the training data are not."""
    cfg = custom(MASK_RCNN, coco, max_epochs=1, train_dataloader__batch_size=2)
    narrow_detector(cfg.model)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    resize = dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline[3] = resize
    cfg.val_dataloader.dataset.pipeline[1] = cfg.test_dataloader.dataset.pipeline[1] = resize
    enable_amp(cfg, 'bfloat16')
    cfg.default_hooks.checkpoint.save_best = None
    released = detector(cfg, 80)
    cfg.load_from = str(coco / 'released.pth')
    torch.save(dict(state_dict=released), cfg.load_from)
    cfg.experiment_name = 'from_a_detector_of_other_classes'
    runner = build_runner(cfg)
    assert runner.train_loop  # so that the runner knows that it trains
    initial = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.load_or_resume()
    for key, value in runner.model.state_dict().items():
        grows = key.rpartition('.')[0] in ROWS[MASK_RCNN]
        assert torch.equal(value, initial[key] if grows else released[key]), key
    (report,) = (text for text in log if 'weights loaded' in text)
    (left,) = (
        line for line in report.splitlines() if 'left as initialised, of 80 classes instead of 3' in line
    )
    assert all(f'{key}.{kind}' in left for key in ROWS[MASK_RCNN] for kind in ('weight', 'bias'))

    dtypes = set()
    runner.model.backbone.register_forward_hook(
        lambda module, args, maps: dtypes.update((module.training, x.dtype) for x in maps)
    )
    runner.train()
    assert dtypes == {(True, torch.bfloat16), (False, torch.float32)}
    saved, checkpoint = coco / 'work/from_a_detector_of_other_classes.py', coco / 'work/epoch_1.pth'
    (coco / 'annotations/train.json').unlink()
    shutil.rmtree(coco / 'train')
    cfg = load_config(str(next(saved.parent.glob('*.py'))), work_dir=str(coco / 'tested'))
    cfg.load_from, cfg.experiment_name = str(checkpoint), 'tested'
    follow_data(cfg, training=False)
    enable_visualization(cfg, show=False, show_dir=str(coco / 'pictures'))
    cfg.visualizer.name = 'own data'  # MMEngine would share another test's
    preflight(cfg, training=False)
    tester = build_runner(cfg)
    metrics = tester.test()
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    assert len(list((coco / 'pictures').iterdir())) == 4
    assert tester.visualizer.dataset_meta['classes'] == list(CATEGORIES.values())
    assert any('cat' in text and 'traffic light' in text and 'mAP' in text for text in log), 'AP by class'


def test_other_configs_stay_as_they_are(coco):
    cfg = load_config(str(ROOT / 'configs/mask_rcnn/dat_t_1x_coco.py'), dict(data_root=str(coco)))
    before = deepcopy(cfg.to_dict())
    follow_data(cfg, training=True)
    assert cfg.to_dict() == before
    assert json.loads((coco / 'annotations/train.json').read_text()) == annotations()


def test_docs_name_every_setting():
    text = (ROOT / 'docs/own_data.md').read_text()
    for path in CUSTOM.glob('*_dat_t_*.py'):
        cfg = Config.fromfile(path)
        settings = set(settings_of(cfg)) & cfg.keys() - {'data_format'}
        assert len(settings) >= 5
        assert not [name for name in settings if f'`{name}' not in text], path.name


def test_the_config_in_the_docs(coco, tmp_path):
    text = (ROOT / 'docs/own_data.md').read_text()
    (block,) = re.findall('```python\n(.*?)```', text, re.DOTALL)
    path = tmp_path / 'mine.py'
    path.write_text(block.replace('PATH/TO/configs', str(ROOT / 'configs')).replace("'my_data'", f"'{coco}'"))
    cfg = load_config(str(path))
    follow_data(cfg, training=True)
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == str(coco)
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[-1].end) == (30, 30)
    assert cfg.train_dataloader.batch_size == 4
    assert classes_of(cfg) == [list(CATEGORIES.values())] * 3
