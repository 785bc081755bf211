"""Random numbers that depend on where a run is, not on how it got there.

MMEngine seeds once, at the start of a process. What a resumed run draws, for drop path, proposals and
augmentation, then differs from what the undisturbed run would have drawn, and depends on the workers. Here
each step and each sample is seeded by its number, so both draw the same.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Dataset, Sampler

_SAMPLE, _STEP = range(2)


class NumberedIndex(int):
    """An index into a data set, with the number of the sample in the run (of this process)."""

    number: int


class NumberedSampler(Sampler):
    """Numbers what a sampler of MMEngine yields, through epochs and resumptions.

    Args:
        dataset: What is sampled.
        sampler: Config of the sampler.
        seed: For the sampler; `None` for one that the processes agree on.
    """

    def __init__(self, dataset: Dataset, sampler: dict, seed: int | None = None):
        self.dataset = dataset
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self._number = 0
        if hasattr(self.sampler, 'skip'):  # asked for by MMEngine's loop over iterations
            self.skip = self._skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[NumberedIndex]:
        for index in self.sampler:
            if isinstance(index, int):  # some samplers yield more
                index = NumberedIndex(index)
                index.number = self._number
            self._number += 1
            yield index

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch; from 0 in a loop over iterations, before `skip`."""
        self._number = epoch * len(self)
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _skip(self, count: int) -> None:
        self._number = count
        self.sampler.skip(count)


class SeededItems:
    """`__getitems__` of a data set, which PyTorch's workers call: seeds each sample by its number."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = (seed, get_rank(), _SAMPLE)

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        samples = []
        for index in indices:
            if isinstance(index, NumberedIndex):
                set_seed(*self.seed, index.number)
                index = int(index)
            samples.append(self.dataset[index])
        return samples


class SeedHook(Hook):
    """Seeds each step of a training by its number, and each sample that has one; see `number_samples`."""

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        dataset = runner.train_loop.dataloader.dataset
        dataset.__getitems__ = SeededItems(dataset, runner.seed)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        set_seed(runner.seed, get_rank(), _STEP, runner.iter)


def number_samples(dataloader: Any) -> None:
    """Has the sampler of a dataloader's config numbered; of something else than a config, does nothing."""
    if isinstance(dataloader, dict) and isinstance(dataloader.get('sampler'), dict):
        dataloader['sampler'] = dict(type=NumberedSampler, sampler=dataloader['sampler'])


def set_seed(*numbers: int) -> None:
    """Seeds Python, NumPy and PyTorch by several numbers at once."""
    state = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))
