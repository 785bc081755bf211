_base_ = 'dat_t_3x_coco.py'

model = dict(
    backbone=dict(
        arch='plus_tiny',
        key_strides=(8, 4, 2, 1),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='mmdat://dat_pp_tiny_in1k_224'),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
# The authors train with 64 images a step.
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=64)
