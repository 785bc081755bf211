from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from mmdat.engine import StrictCheckpointHook


def load(checkpoint: dict, ignore=()) -> dict:
    """The checkpoint's weights after the hook, for a model with `backbone` and `head`."""
    model = nn.ModuleDict({'backbone': nn.Linear(2, 3), 'head': nn.Linear(3, 4)})
    runner = SimpleNamespace(model=model, logger=MMLogger.get_instance('test'))
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
    assert set(load(weights(**{'head.weight': torch.zeros(80, 3)}), ignore=('head',))) == {
        'backbone.weight',
        'backbone.bias',
    }
