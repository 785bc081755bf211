# Images and label maps of a user, with ADE20K's pipelines in true colours. Which data sets these are, is
# filled in from the settings of the leaf.
_base_ = 'ade20k.py'

train_pipeline = [step for step in _base_.train_pipeline if step.type != 'PhotoMetricDistortion']
_dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root='',
    data_prefix=dict(img_path='', seg_map_path=''),
    img_suffix='',
    seg_map_suffix='',
)
train_dataloader = dict(dataset=dict(**_dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**_dataset, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
