# Table 6, row 4: one learned bias for each pair of query and key.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(pos_bias='fixed'))
