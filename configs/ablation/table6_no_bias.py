# Table 6, row 3: no position bias.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(pos_bias=None))
