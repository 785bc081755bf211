_base_ = 'dat_t_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='plus_tiny',
        key_strides=(8, 4, 2, 1),
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='mmdat://dat_pp_tiny_in1k_224'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
