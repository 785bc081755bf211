# Table 8, row 3: Deformable DETR's attention with 196 and 49 points in stages 3 and 4.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(block_patterns=('LS', 'LS', 'LQ', 'LQ'), num_points=(1, 1, 196, 49)))
