"""What a resumed training draws is what the undisturbed one draws."""

import numpy as np
import pytest
import torch
from helpers.comparison import assert_same
from helpers.toy import toy_config, train
from torch.utils.data import DataLoader, Dataset

from mmdat.engine.randomness import NumberedSampler, SeededItems


def end_of(work_dir, step: str) -> dict:
    content = torch.load(work_dir / f'{step}.pth', weights_only=False)
    losses, _ = content['message_hub']['log_scalars']['train/loss'].data
    accuracies, _ = content['message_hub']['log_scalars']['val/acc'].data
    return {
        **{key: content[key] for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')},
        'losses': losses.tolist(),
        'accuracies': accuracies.tolist(),
    }


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize(
    ('event', 'count'), [('before_train_iter', 13), ('after_val_epoch', 2), ('before_val_epoch', 4)]
)
def test_killed_and_resumed(tmp_path, by_epoch, workers, event, count):
    step = 'epoch_4' if by_epoch else 'iter_20'
    for name, killed in (('undisturbed', None), ('killed', (event, count))):
        cfg = toy_config(tmp_path / name, by_epoch, workers=workers, save_best='acc', rule='less')
        train(cfg, killed)
    train(cfg)
    expected, end = (end_of(tmp_path / name, step) for name in ('undisturbed', 'killed'))
    assert len(expected['losses']) == 20
    assert_same(end, expected)


def test_the_seed_of_an_unseeded_run_goes_on(tmp_path):
    cfg = toy_config(tmp_path)
    cfg.pop('randomness')
    train(cfg, ('before_train_iter', 8))
    train(cfg)
    seeds = {torch.load(path, weights_only=False)['meta']['seed'] for path in tmp_path.glob('epoch_*.pth')}
    assert len(seeds) == 1


class Echo(Dataset):
    """Each sample is a random number."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        assert type(index) is int
        return np.random.rand()


def draw(epoch: int, workers: int) -> list[float]:
    dataset = Echo()
    dataset.__getitems__ = SeededItems(dataset, seed=1)
    sampler = NumberedSampler(dataset, dict(type='DefaultSampler', shuffle=False), seed=1)
    sampler.set_epoch(epoch)
    batches = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)
    return torch.cat(list(batches)).tolist()


def test_each_sample_of_each_epoch_is_augmented_in_its_own_way():
    numbers = draw(0, 0) + draw(1, 0)
    assert len(set(numbers)) == 12
    assert draw(1, 2) == numbers[6:]


def test_an_iterating_loop_skips_samples_with_their_numbers():
    sampler = NumberedSampler(Echo(), dict(type='InfiniteSampler'), seed=1)
    stream = iter(sampler)
    expected = [(int(index), index.number) for index in (next(stream) for _ in range(20))]
    resumed = NumberedSampler(Echo(), dict(type='InfiniteSampler'), seed=1)
    resumed.skip(8)
    stream = iter(resumed)
    assert [(int(index), index.number) for index in (next(stream) for _ in range(12))] == expected[8:]
