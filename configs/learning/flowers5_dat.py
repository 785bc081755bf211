_base_ = [
    '../_base_/models/dat_classifier.py',
    '../_base_/models/narrow_backbones.py',
    '../_base_/datasets/flowers5.py',
    '../_base_/schedules/learning_40e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.narrow_dat, out_indices=(3,)),
    head=dict(num_classes=5, in_channels=256),
    train_cfg=dict(augments=None),
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
