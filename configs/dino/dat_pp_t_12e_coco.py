_base_ = ['dat_t_12e_coco.py', '../_base_/models/dat_pp_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_pp_backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
