_base_ = 'dat_pp_t_3x_coco.py'

model = dict(
    backbone=dict(
        arch='pp_small',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='mmdat://dat_pp_small_in1k_224'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
