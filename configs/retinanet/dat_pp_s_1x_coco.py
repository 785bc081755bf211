_base_ = 'dat_pp_t_1x_coco.py'

model = dict(
    backbone=dict(
        arch='pp_small',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='mmdat://dat_pp_small_in1k_224'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
