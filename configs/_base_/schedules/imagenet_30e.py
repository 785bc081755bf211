# Fine-tuning at 384 pixels: no warm-up, and next to no weight decay.
_base_ = 'imagenet_300e.py'

optim_wrapper = dict(optimizer=dict(lr=4e-6, weight_decay=1e-8))
param_scheduler = [
    dict(type='CosineAnnealingLR', eta_min=2e-7, by_epoch=True, begin=0, end=30, convert_to_iter_based=True)
]
train_cfg = dict(max_epochs=30)
