"""A training that takes seconds, started by the tools as a user starts it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from mmdat.demo import write_shapes_coco

ROOT = Path(__file__).parents[2]

# RetinaNet with a narrow DAT on drawn shapes of 96 x 128 pixels: 8 images to train on, 2 to validate with.
CONFIG = """
_base_ = '{root}/configs/retinanet/dat_t_1x_coco.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=16,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 4, 8),
            offset_groups=(1, 1, 2, 4),
        ),
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
_resize = dict(type='Resize', scale=(128, 96), keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    _resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = _resize
_in_this_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, **_in_this_process, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(**_in_this_process, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=1)
"""


def write_config(folder: Path, extra: str = '') -> Path:
    """Draws the images into `folder/data` and writes the config `folder/small.py`, which ends in `extra`."""
    write_shapes_coco(folder / 'data', num_train=8, num_val=2, image_size=(96, 128))
    path = folder / 'small.py'
    path.write_text(CONFIG.format(root=ROOT) + extra)
    return path


def start_tool(
    folder: Path, *command: str, options: tuple[str, ...] = (), port: int | None = None
) -> subprocess.Popen:
    """Starts a command from the repository root, with the data of `folder`, in a process group of its own.

    Output, errors included, goes to the pipe `stdout`.
    """
    environment = {
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'VIRTUAL_ENV': sys.prefix,
        'PORT': str(port or free_port()),
        'OMP_NUM_THREADS': '1',
    }
    return subprocess.Popen(
        [*command, '--cfg-options', f'data_root={folder / "data"}', *options],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_tool(folder: Path, *command: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and output of a command, see `start_tool`."""
    process = start_tool(folder, *command, options=options)
    output, _ = process.communicate()
    return process.returncode, output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
