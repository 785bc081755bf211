# Table 6, row 2: keys stay at the reference points.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(offset_range=0))
