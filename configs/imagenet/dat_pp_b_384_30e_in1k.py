_base_ = 'dat_b_384_30e_in1k.py'

# The nominal size stays 224: the authors stretch the bias tables of DAT++ instead of resizing them.
model = dict(backbone=dict(arch='pp_base', img_size=224, window_size=7, drop_path_rate=0.6))
optim_wrapper = dict(optimizer=dict(lr=4e-5))
param_scheduler = _base_.param_scheduler
param_scheduler[0].eta_min = 4e-7
test_pipeline = _base_.test_pipeline
test_pipeline[1:3] = [test_pipeline[1] | dict(scale=(384, 384))]  # and no crop
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
load_from = 'mmdat://dat_pp_base_in1k_224'
