# mmdetection's recipe of Swin-T, with the learning rate and decay that it gives to Swin's parameters.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../_base_/models/dat_backbone.py',
    '../_base_/schedules/slow_backbone.py',
]

model = dict(
    backbone=_base_.dat_backbone | dict(_delete_=True, drop_path_rate=0.3),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
    init_cfg=None,
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={**_base_.optim_wrapper.paramwise_cfg.custom_keys, **_base_.slow_backbone},
    )
)
