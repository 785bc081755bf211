# Table 7, row 5: Swin-T.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(_delete_=True, type='SwinTransformer', arch='tiny', drop_path_rate=0.2))
