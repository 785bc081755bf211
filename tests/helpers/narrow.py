"""A DAT that is small enough for tests, also inside the models of the configs."""

import torch
from mmengine.config import ConfigDict

from mmdat.backbones import DAT

ARCH = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
WIDTHS = [16, 32, 64, 128]
# settings of the two generations
CVPR = dict(key_strides=(1, 1, 2, 1))
PLUS = dict(arch=ARCH | dict(generation='pp'))


def narrow_dat(**settings) -> DAT:
    """With the same weights in each test."""
    torch.manual_seed(0)
    return DAT(**dict(arch=ARCH, img_size=64, window_size=4, drop_path_rate=0.0) | settings)


def narrow(model: ConfigDict) -> None:
    """Makes the backbone of a model small, and fits to it what reads its maps. Nothing is pretrained."""
    model.backbone.update(arch=ARCH, drop_path_rate=0.0, init_cfg=None)
    if 'in_channels' in model.get('neck', {}):
        model.neck.in_channels = WIDTHS[-len(model.neck.in_channels) :]
    elif 'head' in model:
        model.head.in_channels = WIDTHS[3]
    else:
        model.decode_head.update(in_channels=WIDTHS, channels=32)
        model.auxiliary_head.in_channels = WIDTHS[2]


def narrow_detector(model: ConfigDict) -> None:
    """Makes all of RetinaNet, Mask R-CNN or Cascade Mask R-CNN small."""
    narrow(model)
    model.neck.out_channels = 16
    if 'roi_head' not in model:
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
        return
    model.rpn_head.update(in_channels=16, feat_channels=16)
    heads = model.roi_head
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = 16
    box_heads = heads.bbox_head
    for head in box_heads if isinstance(box_heads, list) else [box_heads]:
        head.update(in_channels=16, conv_out_channels=16, fc_out_channels=32)
    heads.mask_head.update(in_channels=16, conv_out_channels=16)
