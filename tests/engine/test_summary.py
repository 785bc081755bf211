import json
import re

import pytest
import torch
from helpers.training import write_config

from mmdat.engine import load_config, summarize


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('small')


@pytest.fixture
def told(folder):
    """The summary of a small training, or test, as a dict of its lines."""
    path = str(write_config(folder))

    def told(training=True, launcher='none', **options) -> dict[str, str]:
        options = {name.replace('__', '.'): value for name, value in options.items()}
        cfg = load_config(path, {'data_root': str(folder / 'data'), **options}, work_dir='here')
        cfg.launcher = launcher
        return dict(re.split(' {2,}', line) for line in summarize(cfg, training).splitlines())

    return told


def test_a_training(told, folder):
    annotations = folder / 'data/annotations'
    assert told() == {
        'model': 'RetinaNet with DAT, 0.51 M parameters',
        'weights': 'as initialised, from scratch',
        'training data': '8 images, 80 classes, 41 instances (CocoDataset, '
        f'{annotations}/instances_train2017.json)',
        'validation data': '2 images, 80 classes, 13 instances (CocoDataset, '
        f'{annotations}/instances_val2017.json)',
        'batch size': '2 images',
        'learning rate': '0.0001, AdamW; meant for 16 images a step, --auto-scale-lr adapts it',
        'precision': 'float32',
        'steps': '8: 2 epochs of 4',
        'work directory': 'here',
    }


def test_one_of_each(told, folder):
    """And crowds, of which nothing is learned, are no instances."""
    annotations = folder / 'data/annotations'
    content = json.loads((annotations / 'instances_train2017.json').read_text())
    image, *_ = content['images']
    of_image = [a for a in content['annotations'] if a['image_id'] == image['id']]
    of_image[0]['iscrowd'] = 1
    content.update(images=[image], annotations=of_image[:2])
    (annotations / 'one.json').write_text(json.dumps(content))
    lines = told(
        train_dataloader__dataset__ann_file='annotations/one.json',
        train_dataloader__batch_size=1,
        train_cfg__max_epochs=1,
    )
    assert lines['training data'].startswith('1 image, 80 classes, 1 instance, 1 crowd (')
    assert lines['batch size'] == '1 image'
    assert lines['steps'] == '1: 1 epoch of 1'


def test_many_processes(told, monkeypatch):
    for name, value in dict(RANK='0', WORLD_SIZE='3', LOCAL_WORLD_SIZE='3').items():
        monkeypatch.setenv(name, value)
    lines = told(launcher='pytorch', auto_scale_lr__enable=True)
    assert lines['batch size'] == '6 images, 2 in each of 3 processes'
    assert lines['learning rate'] == '3.75e-05, AdamW; scaled from 0.0001 for 16 images'
    assert lines['steps'] == '4: 2 epochs of 2'  # 3 of 8 images in each process


def test_steps_without_epochs(told):
    lines = told(
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=20, val_interval=5),
        train_dataloader__sampler=dict(type='InfiniteSampler'),
        optim_wrapper__accumulative_counts=4,
    )
    assert lines['steps'] == '20, about 5.0 epochs'
    assert lines['batch size'] == '2 images; weights change every 4 steps'


def test_where_weights_come_from(told, folder):
    torch.save({'state_dict': {}}, folder / 'x.pth')
    own = dict(_delete_=True, type='Pretrained', checkpoint=f'{folder}/x.pth')
    part = f'backbone from {folder}/x.pth'
    assert told(model__backbone__init_cfg=own)['weights'] == f'{part}, the rest as initialised'
    gone = dict(_delete_=True, type='Pretrained', checkpoint='gone.pth')  # is not needed any more
    options = dict(load_from=f'{folder}/x.pth', model__backbone__init_cfg=gone)
    assert told(**options)['weights'] == f'from {folder}/x.pth'
    assert told(**options, resume=True)['weights'] == f'the training goes on from {folder}/x.pth'
    options['model__backbone__init_cfg'] = own
    assert told(**options, load_ignore='backbone')['weights'] == (
        f'from {folder}/x.pth without backbone, {part}'
    )


def test_a_test(told, folder):
    torch.save({'state_dict': {}}, folder / 'x.pth')
    lines = told(training=False, load_from=f'{folder}/x.pth')
    assert list(lines) == ['model', 'weights', 'test data', 'work directory']
    assert lines['test data'].startswith('2 images, 80 classes, 13 instances')
