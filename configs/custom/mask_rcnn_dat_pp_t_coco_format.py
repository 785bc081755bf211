# The same with DAT++-T, starting from the authors' detector.
_base_ = ['mask_rcnn_dat_t_coco_format.py', '../_base_/models/dat_pp_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_pp_backbone, drop_path_rate=0.3),
    neck=dict(in_channels=[64, 128, 256, 512], add_extra_convs='on_input'),
)
load_from = 'mmdat://dat_pp_tiny_mask_rcnn_3x'
