# DINO with four levels. mmdetection's recipe for Swin is that of ResNet; here norms do not decay.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/models/dat_backbone.py',
    '../_base_/schedules/slow_backbone.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=_base_.slow_backbone))
