"""Determinism can be had: the same bits in each run with `--deterministic`, on CPUs."""

import pytest
import torch
from helpers.processes import run_script, run_together
from helpers.training import write_config

from mmdat.layers import WindowAttention
from mmdat.ops import deformable_attention

# Stochastic depth, random flips and worker processes, and no seed in the config.
OPTIONS = (
    'randomness.seed=None',
    'train_dataloader.num_workers=2',
    'train_cfg.max_epochs=1',
    'default_hooks.checkpoint.save_optimizer=False',
)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_trainings_end_in_the_same_bits(processes, tmp_path, trials):
    config = str(write_config(tmp_path))
    states = []
    for trial in range(trials(2, 5)):
        work_dir = tmp_path / str(trial)
        launcher = 'pytorch' if processes > 1 else 'none'
        arguments = '--deterministic', '--launcher', launcher, '--work-dir', str(work_dir)
        options = '--cfg-options', f'data_root={tmp_path / "data"}', *OPTIONS
        run_together(run_script, processes, work_dir, 'tools/train.py', config, *arguments, *options)
        states.append(torch.load(work_dir / 'epoch_1.pth', weights_only=False)['state_dict'])
    for state in states[1:]:
        for key, value in state.items():
            assert torch.equal(value, states[0][key]), key


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.mark.parametrize(('batch', 'side', 'keys'), [(1, 13, 50), (2, 28, 196), (3, 7, 49)])
def test_deformable_attention_adds_up_in_one_order(batch, side, keys, backend, threads):
    torch.manual_seed(0)
    heads, dims = 6, 32
    q = torch.randn(batch, heads, side * side, dims)
    k, v = torch.randn(2, batch, heads, keys, dims)
    table = torch.randn(heads, 2 * side - 1, 2 * side - 1)
    locations = torch.rand(batch, 3, keys, 2) * 2 - 1

    def run():
        return gradients(
            lambda *inputs: deformable_attention(*inputs, (side, side), backend=backend),
            q,
            k,
            v,
            table,
            locations,
        )

    first = run()
    for _ in range(4):
        for ours, theirs in zip(run(), first):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize('head_dims', [32, 16], ids=['kernel', 'PyTorch'])
def test_window_attention_adds_up_in_one_order(head_dims, threads, monkeypatch):
    monkeypatch.setattr('mmdat.ops.native.chunks.CACHED_NUMBERS', 2**12)  # many chunks
    torch.manual_seed(0)
    layer = WindowAttention(2 * head_dims, 2, window_size=7, shifted=True)
    x = torch.randn(2, 30, 45, 2 * head_dims)

    def run():
        layer.zero_grad()
        layer(x).square().sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    torch.use_deterministic_algorithms(True)  # the gradient of the bias table gathers rows
    try:
        first = run()
        for _ in range(4):
            for ours, theirs in zip(run(), first):
                assert torch.equal(ours, theirs)
    finally:
        torch.use_deterministic_algorithms(False)
