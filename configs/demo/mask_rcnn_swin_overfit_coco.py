# The same with a Swin of the same width and depth, to look at both; see docs/visualization.md.
_base_ = 'mask_rcnn_dat_overfit_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=32,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
    )
)
