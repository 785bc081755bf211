# The same with DAT++-T, starting from the authors' detector.
_base_ = ['retinanet_dat_t_coco_format.py', '../_base_/models/dat_pp_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_pp_backbone, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=[128, 256, 512]),
)
load_from = 'mmdat://dat_pp_tiny_retinanet_3x'
