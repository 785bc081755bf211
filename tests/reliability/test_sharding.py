"""Training larger than one machine: weights, gradients and optimiser state cut over processes (FSDP)."""

from pathlib import Path

import pytest
import torch
from helpers.processes import run_script, run_together
from helpers.random_images import train
from helpers.training import write_config

# Gradients are clipped by their norm over all shards, so that this is tested too.
CLIPPED = dict(optim_wrapper=dict(clip_grad=dict(max_norm=1.0)))


def read(path) -> dict:
    return torch.load(path, weights_only=False)


def flatten(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Weights and momenta, by names without the prefix that MMEngine's DDPStrategy leaves on them."""
    weights = {key.removeprefix('module.'): value for key, value in checkpoint['state_dict'].items()}
    momenta = checkpoint['optimizer']['state']
    return weights | {f'momentum {index}': state['momentum_buffer'] for index, state in momenta.items()}


def assert_equal(ours: dict, theirs: dict) -> None:
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert type(value) is torch.Tensor
        torch.testing.assert_close(
            value, theirs[key], rtol=5e-5, atol=1e-5, msg=lambda m, key=key: f'{key}: {m}'
        )


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['mmdat.FullyShardedStrategy', 'DDPStrategy'])
def test_processes_train_as_one_and_resume_its_training(strategy, tmp_path, trials):
    steps = trials(3, 20)

    def run(world_size, folder, max_steps, **settings):
        args = 'upernet', max_steps, 4, str(folder)
        losses = run_together(train, world_size, folder, *args, **CLIPPED, **settings)
        return torch.tensor(losses).mean(0), read(folder / f'iter_{max_steps}.pth')

    flexible = dict(runner_type='FlexibleRunner', strategy=dict(type=strategy))
    one, two, later = (tmp_path / name for name in ('one', 'two', 'later'))
    interval = dict(default_hooks=dict(checkpoint=dict(interval=steps)))
    expected_losses, expected = run(1, one, 2 * steps, **interval)
    losses, checkpoint = run(2, two, steps, **flexible)
    torch.testing.assert_close(losses, expected_losses[:steps], rtol=2e-6, atol=0)
    assert_equal(checkpoint, read(one / f'iter_{steps}.pth'))

    resume = dict(load_from=str(one / f'iter_{steps}.pth'), resume=True)
    losses, checkpoint = run(2, later, 2 * steps, **flexible, **resume)
    torch.testing.assert_close(losses, expected_losses[steps:], rtol=2e-6, atol=0)
    assert_equal(checkpoint, expected)


@pytest.mark.slow
def test_tools_train_sharded_resume_and_test_the_file(tmp_path):
    """`tools/train.py` on two processes, again for another epoch, and `tools/test.py` on one."""
    config = str(
        write_config(
            tmp_path, 'runner_type = "FlexibleRunner"\nstrategy = dict(type="mmdat.FullyShardedStrategy")\n'
        )
    )
    work_dir = str(tmp_path / 'work')
    common = '--work-dir', work_dir, '--cfg-options', f'data_root={tmp_path / "data"}'
    for epochs in (1, 2):
        options = *common, f'train_cfg.max_epochs={epochs}'
        run_together(run_script, 2, tmp_path, 'tools/train.py', config, '--launcher', 'pytorch', *options)
    logs = ''.join(path.read_text() for path in Path(work_dir).glob('*/*.log'))
    assert 'resumed epoch: 1, iter: 2' in logs
    checkpoint = f'{work_dir}/epoch_2.pth'
    weights = read(checkpoint)['state_dict']
    assert all(type(value) is torch.Tensor for value in weights.values())
    assert weights._metadata['backbone']['generation'] == 'cvpr'
    run_together(run_script, 1, tmp_path, 'tools/test.py', config, checkpoint, *common)
    log = max(Path(work_dir).glob('*/*.log'))  # folders are named by the time
    assert 'missing: none; unexpected: none' in log.read_text()
