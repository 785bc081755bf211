# Fine-tuning by epochs, `max_epochs` of the leaf: the first is a warm-up, however few images there are. The
# learning rate follows the number of images a step by itself. A start, which nobody has tuned.
_base_ = 'adamw.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=True)
