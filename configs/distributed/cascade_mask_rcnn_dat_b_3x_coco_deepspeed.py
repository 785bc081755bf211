# ZeRO 2: gradients and optimiser state cut over the GPUs. Needs `pip install deepspeed`; nobody has run it
# yet. Checkpoints are folders; the zero_to_fp32.py inside makes them one file.
_base_ = '../cascade_mask_rcnn/dat_b_3x_coco.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=2))
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
