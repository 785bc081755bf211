"""One training step and one evaluation of a config from each folder, at small size on real data."""

import socket

import pytest
import torch
from conftest import DATA, ROOT
from mmengine.hooks import Hook
from torch import nn

from mmdat.engine import build_runner, enable_tta, load_config, preflight

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f'needs the images in {DATA}')

NARROW = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
WIDTHS = [16, 32, 64, 128]
BACKBONE = dict(arch=NARROW, drop_path_rate=0.0, init_cfg=None)
# A score of zero leaves something to evaluate.
TWO_STAGE = dict(neck=dict(in_channels=WIDTHS), test_cfg=dict(rcnn=dict(score_thr=0.0)))
CLASSIFIER = dict(head=dict(in_channels=WIDTHS[3]))
UPERNET = dict(decode_head=dict(in_channels=WIDTHS, channels=32), auxiliary_head=dict(in_channels=WIDTHS[2]))
COCO, ADE, IMAGENET, CAMVID, FLOWERS = (
    str(DATA / name)
    for name in ('coco/', 'ade/ADEChallengeData2016', 'imagenet_1k_sample', 'camvid', 'flowers5')
)
# Data, and what else changes in the model with its width.
CASES = {
    'retinanet/dat_t_1x_coco': (COCO, dict(neck=dict(in_channels=WIDTHS[1:]), test_cfg=dict(score_thr=0.0))),
    'mask_rcnn/dat_t_3x_coco': (COCO, TWO_STAGE),
    'cascade_mask_rcnn/dat_t_1x_coco': (COCO, TWO_STAGE),
    'semantic_fpn/dat_t_40k_ade20k': (ADE, dict(neck=dict(in_channels=WIDTHS))),
    'upernet/dat_t_160k_ade20k': (ADE, UPERNET),
    'imagenet/dat_t_300e_in1k': (IMAGENET, CLASSIFIER),
    'imagenet/dat_b_384_30e_in1k': (IMAGENET, CLASSIFIER),
    'ablation/table6_sra': (IMAGENET, CLASSIFIER),
    'ablation/table8_deformable_detr_16_16': (IMAGENET, CLASSIFIER),
    'learning/flowers5_dat': (FLOWERS, CLASSIFIER),
    'learning/camvid_dat': (CAMVID, UPERNET),
}


class Record(Hook):
    """Keeps the gradients of the last step, which the optimiser clears, and the metrics."""

    def before_train(self, runner):
        self.gradients = {name: None for name, p in runner.model.named_parameters() if p.requires_grad}
        for name, p in runner.model.named_parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p, name=name: self.keep(name, p.grad))

    def keep(self, name, gradient):
        self.gradients[name] = gradient.clone()

    def after_val_epoch(self, runner, metrics=None):
        self.metrics = metrics

    after_test_epoch = after_val_epoch


def small_config(name, work_dir):
    """The config with a narrow backbone, small images and two of them to train and to evaluate on."""
    data_root, changes = CASES[name]
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'), dict(data_root=data_root), str(work_dir))
    cfg.model.backbone.update(BACKBONE)
    cfg.merge_from_dict(dict(model=changes))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.indices = 2
        if data_root == IMAGENET:
            dataset.update(ann_file='labels.txt', data_prefix='val', split='')
        elif data_root in (COCO, ADE):
            shrink(dataset.pipeline)
    cfg.train_dataloader.batch_size = 2
    if data_root == ADE:
        shrink(cfg.tta_pipeline)
    if data_root in (COCO, ADE):
        shrink([cfg.model.data_preprocessor, cfg.model.train_cfg, cfg.model.test_cfg])
    limit = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[limit] = cfg.train_cfg.val_interval = 1
    cfg.load_from, cfg.randomness = None, dict(seed=0)
    cfg.experiment_name = name.replace('/', '_')
    return cfg


def shrink(node):
    """Makes images, below a node of a config, eight times smaller, and leaves few regions."""
    for key, value in list(node.items()) if isinstance(node, dict) else enumerate(node):
        if key in ('scale', 'scales', 'crop_size', 'size'):
            eighths = [tuple(n // 8 for n in size) for size in value] if key == 'scales' else None
            node[key] = eighths or tuple(n // 8 for n in value)
        elif key in ('num', 'max_per_img'):
            node[key] = 20
        elif isinstance(value, dict | list):
            shrink(value)


@pytest.mark.parametrize('name', CASES)
def test_trains_and_evaluates(name, tmp_path):
    cfg = small_config(name, tmp_path)
    preflight(cfg, training=True)
    runner, record = build_runner(cfg), Record()
    runner.register_hook(record)
    runner.train()
    for key, gradient in record.gradients.items():
        assert gradient is not None, f'no gradient reaches {key}'
        assert gradient.isfinite().all(), key
        if key.startswith('backbone.') and gradient.ndim > 1:
            assert gradient.any(), f'the gradient of {key} is zero'
    assert record.metrics
    assert all(torch.tensor(float(value)).isfinite() for value in record.metrics.values())


@pytest.mark.parametrize('name', ['semantic_fpn/dat_t_40k_ade20k', 'upernet/dat_t_160k_ade20k'])
def test_multi_scale_testing(name, tmp_path):
    cfg = small_config(name, tmp_path)
    enable_tta(cfg)
    cfg.experiment_name += '_tta'
    runner, record = build_runner(cfg), Record()
    runner.register_hook(record)
    images = []
    runner.model.module.backbone.register_forward_pre_hook(lambda _, args: images.append(args[0].shape))
    runner.test()
    assert 'mIoU' in record.metrics
    assert len(images) == 2 * 6 * 2, 'two images at six scales, as they are and flipped'
    assert len({shape[-1] for shape in images}) >= 6


def test_distributed_training_without_gpus(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    settings = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    for key, value in settings.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = small_config('semantic_fpn/dat_t_40k_ade20k', tmp_path)
    cfg.launcher = 'pytorch'
    try:
        runner = build_runner(cfg)
        assert isinstance(runner.model, nn.parallel.DistributedDataParallel)
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in runner.model.modules())
        runner.train()
    finally:
        torch.distributed.destroy_process_group()
