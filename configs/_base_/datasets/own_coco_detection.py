# The same without masks.
_base_ = 'coco_detection_ms.py'

_dataset = dict(data_root='', ann_file='', data_prefix=dict(img=''))
train_dataloader = dict(dataset=_dataset)
val_dataloader = dict(dataset=_dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='', classwise=True)
test_evaluator = val_evaluator
