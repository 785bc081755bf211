_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'dat_backbone.py']

model = dict(
    # The pyramid starts at stride 8. A map of stride 4 would leave its norm without gradient: DDP fails.
    backbone=dict(_delete_=True, **_base_.dat_backbone, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
