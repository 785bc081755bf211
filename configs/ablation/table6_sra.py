# Table 6, row 6: PVT's spatial reduction attention in stages 1 and 2, which reduces by 8 and 4.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(block_patterns=('P', 'P', 'LD', 'LD'), key_strides=(8, 4, 1, 1)))
