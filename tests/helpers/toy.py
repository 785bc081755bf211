"""A training of MMEngine without images that takes milliseconds, with everything in it that is random."""

import random
from pathlib import Path

import numpy as np
import torch
from helpers.instances import forget_instances
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch.utils.data import Dataset

from mmdat.engine import build_runner, resume

NUM_SAMPLES = 10


class Killed(BaseException):
    """What stops a toy training."""


@DATASETS.register_module(force=True)
class ToyDataset(Dataset):
    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict:
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        return dict(inputs=torch.tensor([index / NUM_SAMPLES, noise]))


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode: str = 'tensor'):
        inputs = torch.stack(inputs)
        if mode == 'loss':
            return dict(loss=torch.nn.functional.dropout(self.layer(inputs) - 1).square().mean())
        return [dict(weight=self.layer.weight.sum().item())] * len(inputs)


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results += [sample['weight'] for sample in data_samples]

    def compute_metrics(self, results: list) -> dict:
        return dict(acc=float(np.mean(results)))


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Stops a training at an event, for the `count`-th time that it occurs."""

    priority = 'HIGHEST'

    def __init__(self, event: str, count: int):
        setattr(self, event, self._occur)
        self.left = count

    def _occur(self, *args, **kwargs) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def toy_config(work_dir: Path, by_epoch: bool = True, workers: int = 0, **checkpoint) -> Config:
    """A config of 4 epochs, or 20 steps, that saves and validates after every 5 steps.

    `checkpoint` are settings of the `CheckpointHook`.
    """
    loader = dict(batch_size=2, dataset=dict(type='ToyDataset'), num_workers=workers)
    sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    length_cfg = dict(max_epochs=4) if by_epoch else dict(max_iters=20, val_interval=5)
    checkpoint = dict(type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 5) | checkpoint
    cfg = dict(
        model=dict(type='ToyModel'),
        train_dataloader=loader | dict(sampler=sampler, persistent_workers=workers > 0),
        val_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False), num_workers=0),
        val_evaluator=dict(type='ToyMetric'),
        train_cfg=dict(by_epoch=by_epoch, **length_cfg),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=4, by_epoch=by_epoch),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type='EMAHook')],
        randomness=dict(seed=3),
        experiment_name='toy',
        work_dir=str(work_dir),
        launcher='none',
        log_level='ERROR',
    )
    return Config(cfg)


def train(cfg: Config, killed: tuple[str, int] | None = None, go_on: str | None = 'auto') -> None:
    """Trains, up to an event and its count if these are given."""
    forget_instances()  # of a run that began in the same second
    cfg = Config(cfg.to_dict())
    resume(cfg, go_on)
    if killed:
        cfg.custom_hooks.append(dict(type='KillHook', event=killed[0], count=killed[1]))
    runner = build_runner(cfg)
    try:
        runner.train()
    except Killed:
        if not killed:
            raise
    finally:
        for holder in (runner.train_dataloader, getattr(runner.train_loop, 'dataloader_iterator', None)):
            if holder:
                holder._iterator = None  # ends workers that live on
