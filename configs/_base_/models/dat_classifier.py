# Layers start as PyTorch leaves them, like the authors': no `init_cfg`.
model = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',  # for MMEngine's `get_model`, which knows no default scope
    backbone=dict(type='mmdat.DAT', arch='tiny', out_indices=(3,), drop_path_rate=0.2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=None,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False,
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
