_base_ = [
    '../_base_/models/semantic_fpn_dat.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/default_runtime_seg.py',
]

train_dataloader = dict(batch_size=4)
