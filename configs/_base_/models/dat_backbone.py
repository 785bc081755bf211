# DAT-T under detectors and segmentors. Leaves change the size; the models take `dat_backbone` over.
dat_backbone = dict(
    type='mmdat.DAT',
    arch='tiny',
    # Stage 3 attends to every second key: an inference from the FLOPs in the paper's Tables 3 and 4,
    # which no other stride meets. The authors never released these models.
    key_strides=(1, 1, 2, 1),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint='mmdat://dat_tiny_in1k_224'),
)
