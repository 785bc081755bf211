_base_ = 'dat_pp_t_3x_coco.py'

model = dict(
    backbone=dict(
        arch='pp_base',
        drop_path_rate=0.8,
        init_cfg=dict(checkpoint='mmdat://dat_pp_base_in1k_224'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(batch_size=1)
