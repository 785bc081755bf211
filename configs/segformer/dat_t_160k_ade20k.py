# SegFormer's head, and its recipe: the head learns ten times as fast.
_base_ = [
    '../_base_/models/segmentor_dat.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_160k.py',
    '../_base_/default_runtime_seg.py',
]

model = dict(decode_head=dict(type='SegformerHead', in_channels=[96, 192, 384, 768], channels=256))
_norms = ['decode_head.fusion_conv.bn', *(f'decode_head.convs.{i}.bn' for i in range(4))]
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            decode_head=dict(lr_mult=10.0),
            **{name: dict(lr_mult=10.0, decay_mult=0.0) for name in _norms},
        )
    )
)
