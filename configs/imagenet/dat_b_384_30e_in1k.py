_base_ = [
    '../_base_/models/dat_classifier.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_30e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='base', img_size=384, window_size=12, drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
load_from = 'mmdat://dat_base_in1k_224'  # the whole classifier; its bias tables are resized
