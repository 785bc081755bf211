_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', 'dat_backbone.py']

# Swin's box heads: four convolutions and one linear layer, boxes of each class learned by GIoU.
_bbox_head = dict(
    type='ConvFCBBoxHead',
    num_shared_convs=4,
    num_shared_fcs=1,
    in_channels=256,
    conv_out_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=80,
    reg_class_agnostic=False,
    reg_decoded_bbox=True,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)
model = dict(
    backbone=dict(_delete_=True, **_base_.dat_backbone),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(
        bbox_head=[
            dict(**_bbox_head, bbox_coder=stage.bbox_coder) for stage in _base_.model.roi_head.bbox_head
        ]
    ),
)
