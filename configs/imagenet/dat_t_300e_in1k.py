_base_ = [
    '../_base_/models/dat_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e.py',
    'mmpretrain::_base_/default_runtime.py',
]
