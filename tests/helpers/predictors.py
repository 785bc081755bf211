"""A narrow detector, segmentor and classifier of the project's configs, with random weights in files."""

from pathlib import Path

import cv2
import numpy as np
import torch
from conftest import ROOT
from helpers.narrow import ARCH, WIDTHS, narrow
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmdat.engine import load_config

CONFIGS = {
    'detector': 'demo/mask_rcnn_dat_narrow_shapes.py',
    'segmentor': 'learning/camvid_dat.py',
    'classifier': 'learning/flowers5_dat.py',
}


def small_config(kind: str, **options) -> Config:
    """A config with a narrow backbone; its detector gives 5 objects in each image, whatever their scores."""
    cfg = load_config(str(ROOT / 'configs' / CONFIGS[kind]), options)
    if kind == 'detector':
        cfg.model.backbone.arch = ARCH
        cfg.model.neck.in_channels = WIDTHS
        cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=10)
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
        cfg.test_dataloader.dataset.pipeline[1].scale = (160, 120)
    else:
        narrow(cfg.model)
    return cfg


def save_random(cfg: Config, path: Path, **meta) -> str:
    """Weights with which predictions differ from one image to the next, in a file with `meta`."""
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if name.endswith(('fc_cls.weight', 'fc.weight', 'conv_seg.weight', 'conv_logits.weight')):
            torch.nn.init.normal_(parameter)
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, path)
    return str(path)


def write_image(path: Path, height: int = 60, width: int = 90, seed: int = 0) -> str:
    """An image with smooth random colours."""
    rng = np.random.default_rng(seed)
    pixels = cv2.resize(rng.integers(0, 255, (4, 5, 3), np.uint8), (width, height))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return str(path)
