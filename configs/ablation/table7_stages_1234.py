# Table 7, row 1: deformable attention in all stages.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(block_patterns=('LD', 'LD', 'LD', 'LD'), key_strides=(4, 2, 1, 1)))
