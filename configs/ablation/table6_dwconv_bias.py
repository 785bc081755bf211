# Table 6, row 5: a depth-wise convolution as position embedding.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(pos_bias='dwconv'))
