"""Pictures in the course of a training of a tiny classifier."""

import cv2
import numpy as np
import pytest
import torch
from helpers.instances import forget_instances
from helpers.tasks import CLASSIFIER
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmdat.errors import UserError
from mmdat.visualization import AttentionPicturesHook, PicturePainter


def config(folder, *hooks):
    """Two classes with two images each; two epochs of two steps, each with a validation."""
    for i in range(4):
        path = folder / f'images/{"ab"[i % 2]}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(i).integers(0, 255, (64, 80, 3), np.uint8))
    pipeline = CLASSIFIER['test_dataloader']['dataset']['pipeline']
    dataset = dict(type='CustomDataset', data_root=str(folder / 'images'), pipeline=pipeline)
    loader = dict(batch_size=2, num_workers=0, dataset=dataset)
    backbone = CLASSIFIER['model']['backbone'] | dict(drop_path_rate=0.5)
    head = CLASSIFIER['model']['head'] | dict(num_classes=2, topk=(1,), loss=dict(type='CrossEntropyLoss'))
    return Config(
        CLASSIFIER
        | dict(
            model=CLASSIFIER['model'] | dict(backbone=backbone, head=head),
            train_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=True)),
            val_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False)),
            test_dataloader=None,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            val_cfg=dict(),
            val_evaluator=dict(type='Accuracy', topk=1),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            default_hooks=dict(checkpoint=None),
            custom_hooks=list(hooks),
            randomness=dict(seed=1),
            work_dir=str(folder / 'work'),
            experiment_name=f'pictures {len(hooks)} {folder.name}',
            log_level='ERROR',
            launcher='none',
        )
    )


def train(cfg):
    forget_instances()
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


HOOK = dict(type='mmdat.AttentionPicturesHook', images=2, queries=[(40, 30)])


def test_a_run_with_pictures_is_the_run_without(tmp_path):
    plain = train(config(tmp_path / 'plain')).model.state_dict()
    runner = train(config(tmp_path / 'drawn', HOOK | dict(interval=2, predictions=True)))
    assert all(torch.equal(plain[key], value) for key, value in runner.model.state_dict().items())
    assert not any(module._forward_hooks for module in runner.model.modules())
    written = sorted(path.name for path in (tmp_path / 'drawn/work').rglob('vis_image/*'))
    # of the second validation only, after four steps
    kinds = ('attention', 'keys', 'points')
    assert written == [f'{kind}_{number}_4.png' for kind in kinds for number in (0, 1)]
    assert runner.message_hub.get_info('validations_before_pictures') == 2


def test_pictures_are_of_the_weights_that_are_validated(tmp_path, monkeypatch):
    seen = {}

    class Watch(Hook):
        def before_val_iter(self, runner, **kwargs):
            seen['validated'] = runner.model.head.fc.weight.clone()

    monkeypatch.setattr(
        PicturePainter,
        '__call__',
        lambda self, path: seen.update(drawn=self.subject.model.head.fc.weight.clone()) or {},
    )
    cfg = config(tmp_path, HOOK, dict(type='EMAHook', momentum=0.5))
    forget_instances()
    init_default_scope('mmpretrain')
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Watch())
    runner.train()
    assert torch.equal(seen['drawn'], seen['validated'])
    assert not torch.equal(seen['drawn'], runner.model.head.fc.weight)


def test_a_picture_that_fails_does_not_end_the_training(tmp_path, capsys):
    cfg = config(tmp_path, HOOK | dict(queries=[(800, 30)], what=['attention']))
    cfg.log_level = 'WARNING'
    train(cfg)
    assert 'no picture of what DAT looks at' in capsys.readouterr().out


def test_what_is_said_before_the_training(tmp_path):
    with pytest.raises(UserError, match=r"no picture is named 'point', did you mean 'points'"):
        train(config(tmp_path, HOOK | dict(what=['point'])))
    cfg = config(tmp_path, HOOK)
    cfg.model.backbone.block_patterns = ('LS',) * 4
    with pytest.raises(UserError, match='no deformable attention to look at'):
        train(cfg)
    with pytest.raises(ValueError, match='interval must be at least 1, got interval=0'):
        AttentionPicturesHook(interval=0)
