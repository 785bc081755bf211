# Can it learn real images by heart? Trains and tests on the first eight of COCO.
_base_ = 'mask_rcnn_dat_narrow_shapes.py'

data_root = 'data/coco/'
_load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(416, 312), keep_ratio=True),
]
train_pipeline = [*_load, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
# `instances` lets CocoMetric score these eight only, not the whole annotation file
_meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')
test_pipeline = [*_load, dict(type='PackDetInputs', meta_keys=_meta_keys)]

_eight = dict(
    type='CocoDataset',
    data_root=data_root,
    ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'),
    indices=8,
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True, type='RepeatDataset', times=50, dataset=dict(**_eight, pipeline=train_pipeline)
    )
)
val_dataloader = dict(dataset=dict(**_eight, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='CocoMetric', metric=['bbox', 'segm'])
test_evaluator = val_evaluator

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', end=max_epochs, convert_to_iter_based=True),
]
randomness = dict(seed=0)
