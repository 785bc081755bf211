_base_ = 'dat_t_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='small',
        init_cfg=dict(checkpoint='mmdat://dat_small_in1k_224'),
    )
)
