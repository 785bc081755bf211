# Table 8, row 1: Deformable DETR's attention with 16 and 16 points in stages 3 and 4.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(block_patterns=('LS', 'LS', 'LQ', 'LQ'), num_points=(1, 1, 16, 16)))
