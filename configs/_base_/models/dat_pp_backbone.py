# DAT++-T under detectors and segmentors, with the key strides of its generation. Leaves put it into the place
# of the CVPR'22 backbone.
dat_pp_backbone = dict(
    type='mmdat.DAT',
    arch='pp_tiny',
    init_cfg=dict(type='Pretrained', checkpoint='mmdat://dat_pp_tiny_in1k_224'),
)
