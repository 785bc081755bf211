from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError
from mmdat.engine import StrictCheckpointHook


def load(checkpoint: dict, ignore=(), resume=False, model=None, training=False) -> dict:
    """The checkpoint's weights after the hook, by default for a model with `backbone` and `head`."""
    model = model or nn.ModuleDict({'backbone': nn.Linear(2, 3), 'head': nn.Linear(3, 4)})
    runner = SimpleNamespace(
        model=model,
        logger=MMLogger.get_instance('test'),
        _load_from='epoch_1.pth',
        _resume=resume,
        _train_loop=Mock(spec=BaseLoop) if training else dict(type='EpochBasedTrainLoop'),
    )
    StrictCheckpointHook(ignore).after_load_checkpoint(runner, checkpoint)
    return checkpoint['state_dict']


def weights(**changes) -> dict:
    model = nn.ModuleDict({'backbone': nn.Linear(2, 3), 'head': nn.Linear(3, 4)})
    state_dict = {**model.state_dict(), **changes}
    return {'state_dict': {key: value for key, value in state_dict.items() if value is not None}}


def test_a_fit_checkpoint_passes():
    assert len(load(weights())) == 4


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'head.bias': None}, r'1 missing: head\.bias'),
        ({'neck.bias': torch.zeros(1)}, r'1 unexpected: neck\.bias'),
        ({'head.weight': torch.zeros(80, 3)}, r'head\.weight \(80, 3\) instead of \(4, 3\)'),
    ],
)
def test_misfits_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        load(weights(**changes))


def test_ignored_weights_stay_as_initialised():
    loaded = load(weights(**{'head.weight': torch.zeros(80, 3)}), ignore=('head',), training=True)
    assert loaded['head.weight'].shape == (4, 3)


@pytest.mark.parametrize(('training', 'resume'), [(True, True), (False, False)])
def test_trained_weights_are_not_ignored_on_resuming_and_testing(training, resume):
    checkpoint = weights(**{'head.weight': torch.full((4, 3), 7.0)}) | {'message_hub': {}}
    loaded = load(checkpoint, ignore=('head',), training=training, resume=resume)
    assert (loaded['head.weight'] == 7).all()
    misfit = weights(**{'head.weight': torch.zeros(80, 3)}) | {'message_hub': {}}
    with pytest.raises(CheckpointError, match='1 of another shape') as error:
        load(misfit, ignore=('head',), training=training, resume=resume)
    assert 'load_ignore' not in str(error.value)


def test_weights_alone_are_nothing_to_resume():
    with pytest.raises(CheckpointError, match=r'no state of a training.*load_from=epoch_1\.pth'):
        load(weights(), resume=True)
    load(weights() | {'message_hub': {}}, resume=True)


def narrow_dat(**settings) -> DAT:
    arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
    return DAT(arch, img_size=64, window_size=4, **settings)


@pytest.mark.parametrize('with_head', [False, True])
def test_a_detector_starts_from_a_classifier(with_head):
    classifier = nn.ModuleDict({'backbone': narrow_dat(out_indices=(3,))})
    if with_head:
        classifier['head'] = nn.Linear(128, 10)
    detector = nn.ModuleDict({'backbone': narrow_dat(), 'neck': nn.Linear(2, 2)})
    loaded = load({'state_dict': classifier.state_dict()}, model=detector, training=True)
    assert loaded.keys() == detector.state_dict().keys()
    for key, value in classifier.state_dict().items():
        if key.startswith('backbone.') and 'norm3' not in key:
            assert torch.equal(loaded[key], value), key
    assert torch.equal(loaded['neck.weight'], detector['neck'].weight)


@pytest.mark.parametrize(
    ('resume', 'message'), [(False, 'but there is nothing to test'), (True, r'missing: .*neck\.weight')]
)
def test_a_classifier_is_not_a_detector(resume, message):
    classifier = nn.ModuleDict({'backbone': narrow_dat()})
    detector = nn.ModuleDict({'backbone': narrow_dat(), 'neck': nn.Linear(2, 2)})
    checkpoint = {'state_dict': classifier.state_dict(), 'message_hub': {}}
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint, resume=resume, model=detector, training=resume)


def test_another_kind_of_model_is_named_instead_of_its_keys():
    """Unless a training starts from it on purpose, with weights that are left as initialised."""
    heads = nn.ModuleDict({'retina_cls': nn.Linear(2, 2)}), nn.ModuleDict({'psp_modules': nn.Linear(2, 2)})
    detector = nn.ModuleDict({'backbone': narrow_dat(), 'bbox_head': heads[0]})
    segmentor = nn.ModuleDict({'backbone': narrow_dat(), 'decode_head': heads[1]})
    checkpoint = {'state_dict': segmentor.state_dict(), 'message_hub': {}}
    for settings in (dict(training=True), dict(training=True, resume=True), dict()):
        with pytest.raises(CheckpointError, match='holds UperNet, but the model is RetinaNet; it fits'):
            load(checkpoint, model=detector, **settings)
    resnet = {
        'state_dict': {'backbone.conv1.weight': torch.zeros(1), 'bbox_head.retina_cls.bias': torch.zeros(2)}
    }
    with pytest.raises(CheckpointError, match='holds no DAT'):
        load(resnet, model=detector, training=True)


def test_another_arch_is_named_instead_of_its_keys():
    arch = dict(embed_dims=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
    model = nn.ModuleDict({'backbone': narrow_dat()})
    other = nn.ModuleDict({'backbone': DAT(arch, img_size=64, window_size=4)})
    with pytest.raises(CheckpointError, match='they differ in depths'):
        load({'state_dict': other.state_dict()}, model=model)
