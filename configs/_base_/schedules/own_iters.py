# Fine-tuning by iterations, `max_iters` of the leaf. The learning rate follows the number of images a step by
# itself. A start, which nobody has tuned.
_base_ = 'adamw.py'

optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0),
]
train_cfg = dict(type='IterBasedTrainLoop', val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=True)
