# A classifier with DAT-T on your own images, in a folder for each class: docs/own_data.md.
_base_ = [
    '../_base_/models/dat_classifier.py',
    '../_base_/datasets/own_class_folders.py',
    '../_base_/schedules/own_epochs.py',
    'mmpretrain::_base_/default_runtime.py',
]

# The data set: train/CLASS/*.jpg and val/CLASS/*.jpg. `--cfg-options` changes each setting.
data_format = 'class_folders'
data_root = 'data/my_data'
train_images = 'train'
val_images = 'val'
classes = None  # the folders' names, in the order of the alphabet
max_epochs = 30

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='mmdat://dat_tiny_in1k_224')),
    train_cfg=dict(augments=None),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='accuracy/top1'))
