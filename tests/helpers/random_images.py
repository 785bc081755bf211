"""Trainings on random images, for experiments in which only the arithmetic matters."""

import os
import random
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch
from helpers.narrow import narrow, narrow_detector
from mmdet.models.task_modules import RandomSampler
from mmdet.registry import TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch._dynamo.utils import counters
from torch.utils.data import Dataset

from mmdat import DAT
from mmdat.engine import CompileBlocksHook, build_runner

ROOT = Path(__file__).parents[2]
SIZE = 64, 96  # height and width


@DATASETS.register_module()
class RandomImages(Dataset):
    """Image `i` and its truth are random, and the same in each process."""

    def __init__(self, scope: str, length: int, size: tuple[int, int] = SIZE):
        self.scope, self.length, self.size = scope, length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        generator = torch.Generator().manual_seed(i)
        height, width = self.size
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        metainfo = dict(img_shape=self.size, ori_shape=self.size, scale_factor=(1.0, 1.0), img_id=i)
        if self.scope == 'mmseg':
            sample = SegDataSample(metainfo=metainfo)
            labels = torch.randint(0, 150, (1, height, width), generator=generator)
            sample.gt_sem_seg = PixelData(data=labels)
        else:
            sample = DetDataSample(metainfo=metainfo)
            number = 1 + i % 4
            starts = torch.rand(number, 2, generator=generator) * 24
            sizes = 24 + torch.rand(number, 2, generator=generator) * 16
            boxes = torch.cat((starts, starts + sizes), 1)
            labels = torch.randint(0, 80, (number,), generator=generator)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
            sample.ignored_instances = InstanceData(bboxes=torch.empty(0, 4), labels=torch.empty(0).long())
        return dict(inputs=image, data_samples=sample)


@TASK_UTILS.register_module()
class FirstSampler(RandomSampler):
    """Takes the first proposals instead of random ones: the same, however images are shared out."""

    def random_choice(self, gallery, num):
        return gallery[:num]


def upernet() -> Config:
    """SyncBN in both heads; every image has as many labelled pixels."""
    cfg = Config.fromfile(ROOT / 'configs/upernet/dat_t_160k_ade20k.py')
    narrow(cfg.model)
    cfg.model.data_preprocessor.size = SIZE
    cfg.model.decode_head.dropout_ratio = cfg.model.auxiliary_head.dropout_ratio = 0.0
    cfg.model.auxiliary_head.channels = 32
    return cfg


def cascade() -> Config:
    """SyncBN in the three box heads, each with as many proposals of every image; no masks."""
    cfg = Config.fromfile(ROOT / 'configs/cascade_mask_rcnn/dat_t_1x_coco.py')
    model = cfg.model
    narrow_detector(model)
    roi_head = model.roi_head
    roi_head.mask_head = roi_head.mask_roi_extractor = None
    for head in roi_head.bbox_head:
        head.num_shared_convs = 1
    train_cfg = model.train_cfg
    for stage, number in zip((train_cfg.rpn, *train_cfg.rcnn), (64, 64, 32, 16)):
        stage.sampler.update(type='FirstSampler', num=number)
    model.data_preprocessor.pad_mask = False
    return cfg


def atss() -> Config:
    """Losses are divided by the number of positives of all processes."""
    cfg = Config.fromfile(ROOT / 'configs/retinanet/dat_t_1x_coco.py')
    head = get_config('mmdet::atss/atss_r50_fpn_1x_coco.py').model
    cfg.model.type, cfg.model.bbox_head, cfg.model.train_cfg = 'ATSS', head.bbox_head, head.train_cfg
    narrow(cfg.model)
    cfg.model.neck.out_channels = 32
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1, norm_cfg=None)
    return cfg


CASES = {case.__name__: case for case in (upernet, cascade, atss)}


class Losses(Hook):
    """Keeps the losses of all steps."""

    def __init__(self):
        self.values = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values.append(outputs['loss'].item())


def train(case: str, steps: int, total_batch: int, work_dir: str, **settings) -> tuple[list, dict]:
    """Losses of this process, and the weights after a training of a few steps.

    SGD, because AdamW makes whole steps of rounding: the gradient of a key's bias, for instance, is zero.
    Small steps, because rounding decides which of two proposals is kept where they are as good as each other.
    """
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    cfg = CASES[case]()
    cfg.train_dataloader = ConfigDict(
        batch_size=total_batch // world_size,
        num_workers=0,
        sampler=dict(type='mmengine.DefaultSampler', shuffle=True),
        dataset=dict(type='RandomImages', scope=cfg.default_scope, length=2 * total_batch),
    )
    for split in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{split}_{part}'] = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps)
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.002, momentum=0.9))
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=steps)
    cfg.work_dir, cfg.randomness, cfg.log_level = work_dir, dict(seed=0), 'WARNING'
    cfg.launcher = 'pytorch' if 'RANK' in os.environ else 'none'
    cfg.merge_from_dict(settings)
    runner, losses = build_runner(cfg), Losses()
    runner.register_hook(losses)
    runner.train()
    return losses.values


def train_at_random_sizes(case: str, steps: int, sides: tuple[int, int] = (64, 256)) -> list[float]:
    """Resident memory in MiB after each step."""
    torch.backends.mkldnn.enabled = False
    cfg = CASES[case]()
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    process, sizes, memory = psutil.Process(), random.Random(0), []
    for step in range(steps):
        size = sizes.randint(*sides), sizes.randint(*sides)
        batch = pseudo_collate([RandomImages(cfg.default_scope, steps, size)[step]])
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        model.parse_losses(losses)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        memory.append(process.memory_info().rss / 2**20)
    return memory


def compile_at_random_sizes(settings: dict, steps: int) -> list[int]:
    """How many graphs the blocks of a backbone have been compiled to after each step of a training."""
    backbone = DAT(**settings, drop_path_rate=0.0)
    CompileBlocksHook('eager').before_train(SimpleNamespace(model=backbone))
    sizes, graphs = random.Random(0), []
    for _ in range(steps):
        image = torch.randn(2, 3, sizes.randint(100, 300), sizes.randint(100, 300))
        sum(out.square().mean() for out in backbone(image)).backward()
        graphs.append(counters['stats']['unique_graphs'])
    assert not counters['graph_break']
    assert not counters['recompile_limit']
    return graphs
