# Weights, gradients and optimiser state cut over the processes, block by block. Any other config takes the
# same two settings.
_base_ = '../cascade_mask_rcnn/dat_b_3x_coco.py'

runner_type = 'FlexibleRunner'
strategy = dict(type='mmdat.FullyShardedStrategy', units=('DATBlock',))
