# Table 7, row 4: deformable attention in stage 4 only.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(block_patterns=('LS', 'LS', 'LS', 'LD')))
