_base_ = [
    '../_base_/models/upernet_dat.py',
    '../_base_/models/narrow_backbones.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/learning_500.py',
    '../_base_/default_runtime_seg.py',
]

model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(_delete_=True, **_base_.narrow_dat),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=11),
)
