"""One training step and one evaluation of a config from each folder, at small size on real data."""

import socket
from math import isqrt
from pathlib import Path

import mmcv
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, ROOT
from helpers.narrow import narrow, narrow_detector
from mmengine.hooks import Hook
from torch import nn

from mmdat.engine import (
    PreflightError,
    build_runner,
    enable_tta,
    enable_visualization,
    load_config,
    preflight,
)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f'needs the images in {DATA}')

COCO, ADE, IMAGENET, CAMVID, FLOWERS = (
    str(DATA / name)
    for name in ('coco/', 'ade/ADEChallengeData2016', 'imagenet_1k_sample', 'camvid', 'flowers5')
)
CASES = {
    'retinanet/dat_t_1x_coco': COCO,
    'mask_rcnn/dat_t_3x_coco': COCO,
    'cascade_mask_rcnn/dat_t_1x_coco': COCO,
    'semantic_fpn/dat_t_40k_ade20k': ADE,
    'upernet/dat_t_160k_ade20k': ADE,
    'imagenet/dat_t_300e_in1k': IMAGENET,
    'imagenet/dat_b_384_30e_in1k': IMAGENET,
    'ablation/table6_sra': IMAGENET,
    'ablation/table8_deformable_detr_16_16': IMAGENET,
    'learning/flowers5_dat': FLOWERS,
    'learning/camvid_dat': CAMVID,
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
    """The config with narrow layers, small images and two of them to train and to evaluate on."""
    data_root = CASES[name]
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'), dict(data_root=data_root), str(work_dir))
    (narrow_detector if data_root == COCO else narrow)(cfg.model)
    if data_root == COCO:  # a score of zero leaves something to evaluate
        test_cfg = cfg.model.test_cfg
        test_cfg.get('rcnn', test_cfg).score_thr = 0.0
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


def test_fine_tuning_at_384_starts_from_the_whole_classifier_at_224(tmp_path):
    pretrained = build_runner(small_config('imagenet/dat_t_300e_in1k', tmp_path))
    for parameter in pretrained.model.parameters():
        nn.init.normal_(parameter)
    pretrained.save_checkpoint(str(tmp_path), 'dat_224.pth', save_optimizer=False, save_param_scheduler=False)
    cfg = small_config('imagenet/dat_b_384_30e_in1k', tmp_path)
    cfg.load_from = str(tmp_path / 'dat_224.pth')
    runner = build_runner(cfg)
    runner.load_or_resume()

    start = runner.model.state_dict()
    sizes = set()
    for key, weight in pretrained.model.state_dict().items():
        if key.endswith('position_bias_table'):
            windows = weight.ndim == 2  # (side ** 2, M)
            maps, ours = (
                t.T.unflatten(1, [isqrt(len(t))] * 2) if windows else t for t in (weight, start[key])
            )
            sizes.add((maps.shape[-1], ours.shape[-1]))
            expected = F.interpolate(maps[None], ours.shape[-2:], mode='bicubic', align_corners=False)[0]
            torch.testing.assert_close(ours, expected)
        else:
            assert start[key].equal(weight), key
    assert sizes == {(13, 23), (27, 47)}


@pytest.mark.parametrize('name', ['semantic_fpn/dat_t_40k_ade20k', 'upernet/dat_t_160k_ade20k'])
def test_multi_scale_testing(name, tmp_path):
    cfg = small_config(name, tmp_path)
    cfg.test_dataloader.dataset.indices = 1  # its label map is resized 12 times, for each class
    enable_tta(cfg)
    cfg.experiment_name += '_tta'
    runner, record = build_runner(cfg), Record()
    runner.register_hook(record)
    images = []
    runner.model.module.backbone.register_forward_pre_hook(lambda _, args: images.append(args[0].shape))
    runner.test()
    assert 'mIoU' in record.metrics
    assert len(images) == 6 * 2, 'an image at six scales, as it is and flipped'
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


@pytest.mark.parametrize(
    'name', ['retinanet/dat_t_1x_coco', 'semantic_fpn/dat_t_40k_ade20k', 'imagenet/dat_t_300e_in1k']
)
def test_pictures_of_predictions(name, tmp_path, monkeypatch):
    """All of them, under their images' names, in this folder and nowhere else."""
    monkeypatch.chdir(tmp_path)
    cfg = small_config(name, 'work')
    cfg.test_dataloader.batch_size = 1
    cfg.visualizer.name = f'pictures of {name}'  # MMEngine would share another test's
    enable_visualization(cfg, show=False, show_dir='pictures')
    runner = build_runner(cfg)
    runner.test()
    dataset = runner.test_dataloader.dataset
    images = {Path(path).name: path for path in (dataset.get_data_info(i)['img_path'] for i in range(2))}
    assert {path.name for path in Path('pictures').iterdir()} == images.keys()
    assert not [path for path in Path('work').rglob('*') if path.suffix in ('.jpg', '.png')]
    if name.startswith('imagenet'):  # mmpretrain's hook swaps red and blue
        for picture, image in images.items():
            drawn = mmcv.imread(f'pictures/{picture}').astype(int)
            shown = mmcv.imresize(mmcv.imread(image), (256, 256))[16:240, 16:240]
            assert abs(drawn - shown).mean() < abs(drawn[..., ::-1] - shown).mean()


def test_pictures_into_a_file(tmp_path):
    cfg = small_config('retinanet/dat_t_1x_coco', tmp_path)
    (tmp_path / 'file').touch()
    with pytest.raises(PreflightError, match=f'--show-dir {tmp_path}/file cannot be made: File exists'):
        enable_visualization(cfg, show=False, show_dir=f'{tmp_path}/file')
