import random

import numpy as np
import pytest
import torch
from helpers.narrow import ARCH

from mmdat.backbones import DAT
from mmdat.visualization import deformable_layers
from mmdat.visualization.inspection import inspecting


def numbers():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_the_model_and_the_run_stay_as_they_were():
    model = DAT(ARCH, img_size=64, drop_path_rate=0.5, frozen_stages=2).train()
    model.stages[3].blocks[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = numbers()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    with inspecting(model):
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        deformable_layers(model, torch.rand(1, 3, 64, 64))
        numbers()
    assert numbers() == expected
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_changes_nothing_either():
    model = DAT(ARCH, img_size=64).train()
    with pytest.raises(RuntimeError), inspecting(model):
        deformable_layers(model, torch.rand(1, 5, 64, 64))  # five channels
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_compiled_blocks_are_looked_into():
    """A compiled block does not call hooks that its modules get later."""
    model = DAT(ARCH, img_size=64).eval()
    block = model.stages[3].blocks[1]
    block.compile(backend='eager')
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        model(x)  # compiled in the mode in which it will be looked at
    with inspecting(model):
        names = [layer.name for layer in deformable_layers(model, x)]
    assert names == ['stages.2.blocks.1.attn', 'stages.3.blocks.1.attn']
