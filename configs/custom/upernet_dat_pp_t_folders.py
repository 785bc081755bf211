# The same with DAT++-T, starting from the authors' segmentor.
_base_ = ['upernet_dat_t_folders.py', '../_base_/models/dat_pp_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.dat_pp_backbone, drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
load_from = 'mmdat://dat_pp_tiny_upernet_160k'
