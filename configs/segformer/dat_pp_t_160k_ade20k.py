_base_ = ['dat_t_160k_ade20k.py', '../_base_/models/dat_pp_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_pp_backbone, drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
