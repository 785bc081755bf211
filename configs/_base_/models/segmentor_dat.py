# What Semantic FPN and UperNet share.
_base_ = 'dat_backbone.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    _scope_='mmseg',  # for MMEngine's `get_model`, which knows no default scope
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    # Section 4.3: stochastic depth 0.3, 0.3 and 0.5 for tiny, small and base, with both methods.
    backbone=_base_.dat_backbone | dict(drop_path_rate=0.3),
    decode_head=dict(
        in_index=[0, 1, 2, 3],
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
tta_model = dict(type='SegTTAModel')
