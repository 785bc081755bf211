# DAT-T* of Table 9: overlapping convolutions as patch embeddings.
_base_ = 'dat_t_300e_in1k.py'

model = dict(backbone=dict(overlap_patches=True))
