# Data of a user in COCO's format. Which data sets these are, is filled in from the settings of the leaf.
_base_ = 'coco_instance_ms.py'

_dataset = dict(data_root='', ann_file='', data_prefix=dict(img=''))
train_dataloader = dict(dataset=_dataset)
val_dataloader = dict(dataset=_dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='', classwise=True)
test_evaluator = val_evaluator
