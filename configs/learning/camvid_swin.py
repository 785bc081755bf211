_base_ = 'camvid_dat.py'

model = dict(backbone=dict(_delete_=True, **_base_.narrow_swin, out_indices=(0, 1, 2, 3)))
