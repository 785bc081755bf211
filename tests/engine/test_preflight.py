import json
import shutil
import sys
from unittest.mock import Mock

import pytest
import torch

from mmdat.demo.shapes_coco import CATEGORY_IDS
from mmdat.engine import PreflightError, build_runner, preflight

_BOX = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
ONE_IMAGE = dict(
    images=[dict(id=1, file_name='1.jpg', height=32, width=32)],
    annotations=[dict(_BOX, segmentation=[[1, 1, 5, 1, 5, 5, 1, 5]])],
    categories=[dict(id=id_, name=name) for name, id_ in CATEGORY_IDS.items()],
)


@pytest.fixture
def cfg(mask_rcnn_config, tmp_path):
    """A config whose data exist."""
    cfg = mask_rcnn_config
    cfg.launcher = 'none'
    cfg.model.backbone.init_cfg = None
    for name in ('annotations', 'train2017', 'val2017'):
        (tmp_path / name).mkdir()
    for split in ('train', 'val'):
        (tmp_path / f'annotations/instances_{split}2017.json').write_text(json.dumps(ONE_IMAGE))
        (tmp_path / f'{split}2017/1.jpg').touch()
    for dataloader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataloader.dataset.data_root = str(tmp_path)
    return cfg


@pytest.mark.parametrize('training', [False, True])
def test_a_fit_config_passes(cfg, training):
    preflight(cfg, training)


@pytest.mark.parametrize(
    ('remove', 'message'),
    [
        ('annotations/instances_train2017.json', 'train data .*instances_train2017.json .*cocodataset.org'),
        ('annotations/instances_val2017.json', 'val data .*make_demo_data.py.*data_root=DIR'),
        ('train2017', 'train data .*train2017 does not exist'),
    ],
)
def test_missing_data(cfg, tmp_path, remove, message):
    path = tmp_path / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PreflightError, match=message) as error:
        preflight(cfg, training=True)
    assert '\n' not in str(error.value)


def test_missing_data_root_in_a_wrapped_dataset(cfg):
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset | dict(data_root='nowhere')
    )
    with pytest.raises(PreflightError, match='train data nowhere does not exist'):
        preflight(cfg, training=True)


def test_missing_pretrained_weights_that_are_released(cfg):
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='none/dat_tiny_in1k_224.pth')
    message = r'mmdat://dat_tiny_in1k_224 instead .*; `--cfg-options model\.backbone\.init_cfg=None`'
    with pytest.raises(PreflightError, match=message):
        preflight(cfg, training=True)
    preflight(cfg, training=False)  # a tested checkpoint brings all weights


def test_pretrained_weights_are_not_needed_where_a_checkpoint_brings_all(cfg, tmp_path, monkeypatch):
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='none.pth')
    cfg.load_from = str(tmp_path / 'whole.pth')
    torch.save({'state_dict': {}}, cfg.load_from)
    preflight(cfg, training=True)
    cfg.load_ignore = 'roi_head.bbox_head.fc_cls'
    preflight(cfg, training=True)
    cfg.load_ignore = 'backbone.stages.3'
    with pytest.raises(PreflightError, match=r'checkpoint none\.pth does not exist'):
        preflight(cfg, training=True)
    cfg.resume = True  # brings the backbone as it was trained
    preflight(cfg, training=True)

    monkeypatch.setattr('mmdat.engine.runner.guard_schemes', Mock())  # changes the whole process
    built = Mock()
    monkeypatch.setattr('mmdat.engine.runner.Runner.from_cfg', built)
    build_runner(cfg)
    assert built.call_args.args[0].model.backbone.init_cfg is None


def test_released_weights_that_cannot_be_downloaded(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('MMDAT_MIRROR', 'http://127.0.0.1:9')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='mmdat://dat_base_in1k_224')
    message = r'127\.0\.0\.1:9/dat_base_in1k_224\.pth .*`--cfg-options model\.backbone\.init_cfg='
    with pytest.raises(PreflightError, match=message):
        preflight(cfg, training=True)


def test_missing_checkpoint(cfg):
    cfg.load_from = 'work_dirs/none.pth'
    with pytest.raises(PreflightError, match=r'checkpoint work_dirs/none\.pth does not exist'):
        preflight(cfg, training=False)


def test_launchers(cfg, monkeypatch):
    for name in ('RANK', 'LOCAL_WORLD_SIZE', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    cfg.launcher = 'pytorch'
    with pytest.raises(PreflightError, match=r'RANK unset.*dist_train\.sh'):
        preflight(cfg, training=True)
    cfg.launcher = 'slurm'
    with pytest.raises(PreflightError, match=r'SLURM_PROCID unset.*srun'):
        preflight(cfg, training=True)


def test_more_processes_than_gpus(cfg, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    cfg.launcher = 'pytorch'
    with pytest.raises(PreflightError, match='8 processes for 2 GPUs'):
        preflight(cfg, training=True)


def test_amp_of_mmengine_needs_a_gpu(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    with pytest.raises(PreflightError, match='needs a GPU: --amp trains in bfloat16 on CPUs'):
        preflight(cfg, training=True)


@pytest.mark.parametrize(
    ('strategy', 'launcher', 'message'),
    [
        ('DeepSpeedStrategy', 'pytorch', r'pip install deepspeed.*FullyShardedStrategy'),
        ('DeepSpeedStrategy', 'none', r'pip install deepspeed'),
        ('FSDPStrategy', 'pytorch', r"needs GPUs: strategy\.type='mmdat\.FullyShardedStrategy'"),
    ],
)
def test_strategies_that_cannot_run_here(cfg, strategy, launcher, message, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setitem(sys.modules, 'deepspeed', None)  # as if it were not installed
    cfg.launcher = launcher
    cfg.strategy = dict(type=strategy)
    with pytest.raises(PreflightError, match=r"needs `runner_type='FlexibleRunner'`"):
        preflight(cfg, training=True)
    cfg.runner_type = 'FlexibleRunner'
    with pytest.raises(PreflightError, match=message):
        preflight(cfg, training=True)


def test_one_process_tests_without_a_strategy(cfg):
    cfg.update(runner_type='FlexibleRunner', strategy=dict(type='DeepSpeedStrategy'))
    preflight(cfg, training=False)
