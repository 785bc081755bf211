# UperNet as Swin uses it.
_base_ = 'segmentor_dat.py'

model = dict(
    decode_head=dict(
        type='UPerHead', in_channels=[96, 192, 384, 768], pool_scales=(1, 2, 3, 6), channels=512
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=384,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
)
