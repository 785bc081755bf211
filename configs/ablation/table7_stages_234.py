# Table 7, row 2: deformable attention in stages 2 to 4.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(block_patterns=('LS', 'LD', 'LD', 'LD'), key_strides=(1, 2, 1, 1)))
