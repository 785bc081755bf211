# RetinaNet with DAT-T on your own images, annotated with boxes in COCO's format: docs/own_data.md.
_base_ = [
    '../_base_/models/retinanet_dat.py',
    '../_base_/datasets/own_coco_detection.py',
    '../_base_/schedules/own_epochs.py',
    '../_base_/default_runtime.py',
]

# The data set, and what the annotation files call an image, below its folders. `--cfg-options` changes each.
data_format = 'coco'
data_root = 'data/my_data'
train_images = 'train'
train_annotations = 'annotations/train.json'
val_images = 'val'
val_annotations = 'annotations/val.json'
classes = None  # all categories of the training file, or names of some of them, in the file's order
max_epochs = 12

model = dict(backbone=dict(drop_path_rate=0.1))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2, save_best='coco/bbox_mAP'))
