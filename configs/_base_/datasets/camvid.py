# CamVid as prepared for SegNet, in small: 11 classes, 0 is void. ADE20K's pipelines with true colours.
_base_ = 'ade20k.py'

data_root = 'data/camvid'
train_pipeline = [step for step in _base_.train_pipeline if step.type != 'PhotoMetricDistortion']
train_pipeline[2].update(scale=(128, 96), ratio_range=(0.8, 1.5))
train_pipeline[3].crop_size = (96, 96)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (128, 96)
_dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    reduce_zero_label=True,
    metainfo=dict(classes='sky building pole road pavement tree sign fence car pedestrian bicyclist'.split()),
)
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(**_dataset, pipeline=train_pipeline)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(**_dataset, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
