_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'dat_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
