_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdat.DAT',
        arch='tiny',
        # Stage 3 attends to every second key: an inference from the FLOPs in the paper's Tables 3 and
        # 4, which no other stride meets. The authors never released these models.
        key_strides=(1, 1, 2, 1),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='mmdat://dat_tiny_in1k_224'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
