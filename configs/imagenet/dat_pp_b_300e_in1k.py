_base_ = 'dat_t_300e_in1k.py'

model = dict(backbone=dict(arch='pp_base', drop_path_rate=0.7), head=dict(in_channels=1024))
train_dataloader = dict(batch_size=64)
