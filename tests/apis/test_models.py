"""How models are built, and what is known of their classes."""

import re

import numpy as np
import pytest
from conftest import ROOT
from helpers.predictors import save_random, small_config

from mmdat.apis import draw, inference, init_model
from mmdat.apis.models import _describe_data_set, count_classes
from mmdat.engine import load_config
from mmdat.errors import UserError

FLOWERS = ('daisy', 'dandelion', 'roses', 'sunflowers', 'tulips')
CAMVID = 'sky building pole road pavement tree sign fence car pedestrian bicyclist'.split()


def classifier(tmp_path, **meta):
    cfg = small_config('classifier')
    return init_model(cfg, save_random(cfg, tmp_path / 'weights.pth', **meta), 'cpu')


def test_classes_of_the_checkpoint(tmp_path):
    assert classifier(tmp_path, dataset_meta=dict(classes=FLOWERS)).dataset_meta['classes'] == FLOWERS


def test_classes_of_older_libraries(tmp_path):
    assert classifier(tmp_path, CLASSES=list(FLOWERS)).dataset_meta['classes'] == FLOWERS


def test_classes_of_another_number_are_none(tmp_path):
    found = classifier(tmp_path, dataset_meta=dict(classes=FLOWERS[:4])).dataset_meta['classes']
    assert found == tuple(f'class {i}' for i in range(5))


def test_classes_of_the_config():
    meta = _describe_data_set({}, small_config('segmentor'), 11)
    assert meta['classes'] == tuple(CAMVID)
    assert len(meta['palette']) == 11
    assert meta['reduce_zero_label']
    meta = _describe_data_set({}, load_config(str(ROOT / 'configs/imagenet/dat_t_300e_in1k.py')), 1000)
    assert meta['classes'][0] == 'tench, Tinca tinca'
    meta = _describe_data_set({}, small_config('detector'), 80)
    assert meta['classes'][79] == 'toothbrush'
    assert meta['palette'][0] == (220, 20, 60)


def test_classes_of_a_segmentor_of_mmseg_0(tmp_path):
    """The files have names and colours only; how labels are numbered is in the config."""
    meta = _describe_data_set(
        dict(CLASSES=CAMVID[::-1], PALETTE=[[1, 2, 3]] * 11), small_config('segmentor'), 11
    )
    assert meta == dict(classes=tuple(CAMVID[::-1]), palette=[[1, 2, 3]] * 11, reduce_zero_label=True)


def test_a_segmentor_without_colours(tmp_path):
    cfg = small_config('segmentor')
    model = init_model(cfg, save_random(cfg, tmp_path / 'x.pth', CLASSES=CAMVID[::-1]), 'cpu')
    assert 'palette' not in model.dataset_meta
    image = np.full((60, 90, 3), 100, np.uint8)
    pictures = [draw(model, image, inference(model, image)) for _ in range(2)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize('number', [3, 11])
def test_the_number_of_classes_is_the_heads(number):
    from mmengine.registry import MODELS, init_default_scope

    cfg = small_config('segmentor')
    cfg.model.decode_head.num_classes = number
    init_default_scope('mmseg')
    assert count_classes(MODELS.build(cfg.model)) == number


def test_configs_by_path(tmp_path):
    cfg = small_config('classifier')
    checkpoint = save_random(cfg, tmp_path / 'weights.pth')
    cfg.dump(tmp_path / 'config.py')
    model = init_model(tmp_path / 'config.py', checkpoint, 'cpu')
    assert not model.training
    assert model.cfg.model.head.num_classes == 5
    with pytest.raises(UserError, match=r'config mmdat::imagenet/dat_x\.py'):
        init_model('mmdat::imagenet/dat_x.py', checkpoint, 'cpu')
    for name in ('mmdat::mask_rcnn/dat_t_1x_coc.py', str(ROOT / 'configs/mask_rcnn/dat_t_1x_coco')):
        message = f"config {name} does not exist, did you mean 'dat_t_1x_coco.py'?"
        with pytest.raises(UserError, match=re.escape(message)):
            init_model(name, 'x.pth', 'cpu')
    with pytest.raises(UserError, match='config mmnone::x'):
        init_model('mmnone::x.py', 'x.pth', 'cpu')
    with pytest.raises(UserError, match=r'config nowhere\.py does not exist'):
        init_model('nowhere.py', checkpoint, 'cpu')


@pytest.mark.parametrize('device', ['gpu', 'cuda:99'])
def test_devices_that_cannot_be_used(tmp_path, device):
    cfg = small_config('classifier')
    with pytest.raises(UserError, match=f'device {device!r} cannot be used: ') as info:
        init_model(cfg, tmp_path / 'none.pth', device)
    assert '\n' not in str(info.value)


def test_the_config_is_left_as_it_was(tmp_path):
    cfg = small_config('classifier')
    before = cfg.to_dict()
    checkpoint = save_random(cfg, tmp_path / 'weights.pth')
    inference(init_model(cfg, checkpoint, 'cpu'), np.zeros((40, 40, 3), np.uint8))
    assert cfg.to_dict() == before
