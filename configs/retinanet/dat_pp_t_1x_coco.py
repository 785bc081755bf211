_base_ = ['dat_t_1x_coco.py', '../_base_/models/dat_pp_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_pp_backbone, out_indices=(1, 2, 3), drop_path_rate=0.0),
    neck=dict(in_channels=[128, 256, 512]),
)
# The authors train with 64 images a step.
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=64)
