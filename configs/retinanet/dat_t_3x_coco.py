_base_ = [
    '../_base_/models/retinanet_dat.py',
    '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]
