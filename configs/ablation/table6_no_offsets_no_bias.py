# Table 6, row 1: keys stay at the reference points, no position bias.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(offset_range=0, pos_bias=None))
