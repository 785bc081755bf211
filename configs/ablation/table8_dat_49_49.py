# Table 8, row 4: 49 keys in stages 3 and 4.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(key_strides=(1, 1, 2, 1)))
