_base_ = 'dat_t_40k_ade20k.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='mmdat://dat_base_in1k_224'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
