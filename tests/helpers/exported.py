"""Narrow models of the project's configs that are small enough to be exported in tests."""

from conftest import ROOT
from helpers.narrow import ARCH, WIDTHS, narrow
from mmengine.config import Config

from mmdat.engine import load_config

# one block of each kind at least
SHALLOW = {
    'cvpr': ARCH | dict(generation='cvpr', depths=(2, 1, 2, 1)),
    'pp': ARCH | dict(generation='pp', depths=(2, 1, 1, 1)),
}
CONFIGS = {
    'classifier': 'learning/flowers5_dat.py',
    'retinanet': 'retinanet/dat_t_1x_coco.py',
    'semantic_fpn': 'semantic_fpn/dat_t_40k_ade20k.py',
    'upernet': 'learning/camvid_dat.py',
    'mask_rcnn': 'mask_rcnn/dat_t_1x_coco.py',
}


def shallow_config(name: str, generation: str = 'cvpr') -> Config:
    """A config with a narrow backbone of few blocks."""
    cfg = load_config(str(ROOT / 'configs' / CONFIGS[name]), {})
    if name in ('retinanet', 'semantic_fpn'):
        cfg.model.backbone.update(drop_path_rate=0.0, init_cfg=None)
        cfg.model.neck.in_channels = WIDTHS[-len(cfg.model.neck.in_channels) :]
    else:
        narrow(cfg.model)
    cfg.model.backbone.arch = SHALLOW[generation]
    return cfg
