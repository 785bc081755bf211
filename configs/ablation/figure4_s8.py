# Figure 4: largest offset s = 8 cells of the key grid.
_base_ = '../imagenet/dat_t_300e_in1k.py'

model = dict(backbone=dict(offset_range=8))
