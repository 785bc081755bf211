# UperNet with DAT-T on your own images and label maps, in folders: docs/own_data.md.
_base_ = [
    '../_base_/models/upernet_dat.py',
    '../_base_/datasets/own_label_maps.py',
    '../_base_/schedules/own_iters.py',
    '../_base_/default_runtime_seg.py',
]

# The data set. A label map has the name of its image, but for the suffix, and the number of a class in each
# pixel. `--cfg-options` changes each setting.
data_format = 'label_maps'
data_root = 'data/my_data'
train_images = 'images/training'
train_labels = 'annotations/training'
val_images = 'images/validation'
val_labels = 'annotations/validation'
image_suffix = None  # that of the files which are there
label_suffix = '.png'
reduce_zero_label = False  # if True, label 0 is no class, but ignored, as 255 is, and 1 is the first class
classes = None  # the lines of `classes.txt` in `data_root`, or names, in the order of their labels
max_iters = 20000

default_hooks = dict(checkpoint=dict(interval=1000))
