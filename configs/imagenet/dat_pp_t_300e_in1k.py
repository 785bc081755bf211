_base_ = 'dat_t_300e_in1k.py'

model = dict(backbone=dict(arch='pp_tiny'), head=dict(in_channels=512))
