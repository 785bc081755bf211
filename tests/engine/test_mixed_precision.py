"""`--amp`: in which dtype a training computes, and what it does with the loss."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from mmdat.engine import BFloat16OptimWrapper, PreflightError, add_amp_argument, enable_amp
from mmdat.engine.cli import Parser
from mmdat.engine.mixed_precision import describe_precision


def config(**optim_wrapper) -> Config:
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), **optim_wrapper)
    return Config(dict(optim_wrapper=wrapper))


@pytest.fixture
def card(monkeypatch):
    """A GPU that computes in bfloat16, or does not."""

    def card(bfloat16: bool) -> None:
        def is_supported(including_emulation=True):
            return bfloat16 or including_emulation

        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', is_supported)

    return card


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.mark.parametrize(
    ('arguments', 'amp'),
    [
        (['x.py'], None),
        (['x.py', '--amp'], 'auto'),
        (['--amp', 'x.py'], 'auto'),
        (['x.py', '--amp', 'bfloat16'], 'bfloat16'),
        (['--amp', 'float16', 'x.py'], 'float16'),
        (['--amp=float16', 'x.py'], 'float16'),
    ],
)
def test_option(arguments, amp):
    parser = Parser()
    parser.add_argument('config')
    add_amp_argument(parser)
    args = parser.parse_args(arguments)
    assert (args.config, args.amp) == ('x.py', amp)


def test_bfloat16_by_default_on_cpus(no_card):
    cfg = config()
    enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type='mmdat.BFloat16OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    assert describe_precision(cfg) == 'bfloat16, mixed with float32'


def test_bfloat16_by_default_on_cards_that_compute_in_it(card):
    card(bfloat16=True)
    cfg = config()
    enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'mmdat.BFloat16OptimWrapper'


def test_float16_by_default_on_cards_that_emulate_bfloat16(card):
    card(bfloat16=False)
    cfg = config()
    enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ('float16', 'dynamic')
    assert describe_precision(cfg) == 'float16, mixed with float32, dynamic loss scale'


def test_loss_scale_of_the_config_is_for_float16_only(card):
    card(bfloat16=True)
    cfg = config(loss_scale=512.0)
    enable_amp(cfg, 'float16')
    assert cfg.optim_wrapper.loss_scale == 512.0
    assert describe_precision(cfg) == 'float16, mixed with float32, loss scale 512.0'
    enable_amp(cfg, 'bfloat16')
    assert cfg.optim_wrapper.keys() == {'type', 'optimizer'}


def test_float16_without_a_gpu(no_card):
    with pytest.raises(PreflightError, match='--amp float16 needs a GPU: on CPUs take --amp'):
        enable_amp(config(), 'float16')


def test_wrappers_with_a_precision_of_their_own(no_card):
    cfg = config()
    cfg.optim_wrapper.type = 'DeepSpeedOptimWrapper'
    with pytest.raises(PreflightError, match=r"--amp does not go with .*'DeepSpeedOptimWrapper'"):
        enable_amp(cfg)
    cfg.strategy = dict(type='DeepSpeedStrategy', bf16=dict(enabled=True))
    assert describe_precision(cfg) == 'bf16 of DeepSpeedStrategy'


def test_a_step_in_bfloat16(no_card):
    """Activations are in bfloat16, weights, gradients and momenta in float32, in every accumulated step."""
    cfg = config(accumulative_counts=2)
    cfg.optim_wrapper.optimizer.momentum = 0.9
    enable_amp(cfg)
    init_default_scope('mmdet')  # from which the wrapper is found without a registry of its own
    model, seen = nn.Linear(3, 4), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert isinstance(wrapper, BFloat16OptimWrapper)
    before = model.weight.detach().clone()
    for step in range(2):
        with wrapper.optim_context(model):
            loss = model(torch.ones(5, 3)).square().mean()
        wrapper.update_params(loss)
        assert torch.equal(model.weight, before) == (step == 0)
    assert seen == [torch.bfloat16] * 2
    assert model.weight.dtype == torch.float32
    (momentum,) = {state['momentum_buffer'].dtype for state in wrapper.optimizer.state.values()}
    assert momentum == torch.float32
    assert model(torch.ones(1, 3)).dtype == torch.float32, 'outside of a step'
