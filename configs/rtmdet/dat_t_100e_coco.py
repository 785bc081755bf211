# The large RTMDet; mmdetection's recipe of Swin-B, for 128 images a step.
_base_ = ['mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py', '../_base_/models/dat_backbone.py']

model = dict(
    backbone=_base_.dat_backbone | dict(_delete_=True, out_indices=(1, 2, 3), drop_path_rate=0.3),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(position_bias=dict(decay_mult=0.0))))
auto_scale_lr = dict(base_batch_size=128)
