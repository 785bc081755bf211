_base_ = 'flowers5_dat.py'

model = dict(backbone=dict(_delete_=True, **_base_.narrow_swin))
