# ImageNet-1K at 224 pixels, augmented as in the released code: with random erasing, which Section 4.1 of the
# paper denies. Mixup and CutMix are settings of the model. `--cfg-options data_root=PATH` moves all of it.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

data_root = 'data/imagenet'
# The released evaluation: to a square, whatever the aspect ratio, and then the centre.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
_dataloader = dict(
    batch_size=128, pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')
)
train_dataloader = dict(**_dataloader, dataset=dict(data_root=data_root))
val_dataloader = dict(**_dataloader, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
