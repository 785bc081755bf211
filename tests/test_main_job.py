"""Mask R-CNN with DAT on real images, through the tools: train on two processes, evaluate, resume."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

# The recipe of 3x with narrow layers, small images and few regions.
CONFIG = """
_base_ = '{root}/configs/mask_rcnn/dat_t_3x_coco.py'

narrow = dict(
    _delete_=True,
    embed_dims=16,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    offset_groups=(1, 1, 2, 4),
)
model = dict(
    backbone=dict(arch=narrow, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
    test_cfg=dict(
        rpn=dict(max_per_img=20),
        rcnn=dict(score_thr=0.0, max_per_img=20),  # so that an untrained model detects something
    ),
)
_resize = dict(type='Resize', scale=(320, 192), keep_ratio=True)
_load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
train_dataloader = dict(
    batch_size=1,
    dataset=dict(indices=4, pipeline=[*_load, _resize, dict(type='PackDetInputs')]),
)
val_dataloader = dict(
    dataset=dict(
        indices=2,
        pipeline=[
            dict(type='LoadImageFromFile'),
            _resize,
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    )
)
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'small.py'
    path.write_text(CONFIG.format(root=ROOT))
    return path


@pytest.fixture
def run(config, tmp_path, coco_root):
    """Runs a command of the tools on the small config and the real images."""

    def run(*command: str, options: tuple[str, ...] = (), fails: bool = False) -> str:
        result = subprocess.run(
            [arg.format(config=config, work_dir=tmp_path / 'work') for arg in command]
            + ['--cfg-options', f'data_root={coco_root}', 'train_cfg.max_epochs=1', *options],
            cwd=ROOT,
            env=os.environ
            | {
                'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
                'VIRTUAL_ENV': sys.prefix,
                'PORT': str(free_port()),
                'OMP_NUM_THREADS': '1',
            },
            capture_output=True,
            text=True,
            check=False,
        )
        output = result.stdout + result.stderr
        assert bool(result.returncode) == fails, output[-5000:]
        return output

    return run


@pytest.mark.slow
def test_train_evaluate_and_go_on(run, run_here, config, coco_root, tmp_path):
    train = ['bash', 'tools/dist_train.sh', '{config}', '2', '--work-dir', '{work_dir}']
    output = run(*train)
    assert 'Epoch(train) [1][2/2]' in output  # four images on two processes
    assert 'coco/bbox_mAP:' in output
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in weights.values())

    arguments = '--work-dir', tmp_path / 'work', '--cfg-options', f'data_root={coco_root}'
    code, output = run_here('test.py', config, checkpoint, '--out', tmp_path / 'out.pkl', *arguments)
    assert code == 0, output
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]' in output
    assert (tmp_path / 'out.pkl').stat().st_size > 0

    output = run(*train, options=('train_cfg.max_epochs=2',))
    assert f'going on from {checkpoint}' in output
    assert 'Epoch(train) [2][2/2]' in output
    assert 'Epoch(train) [1]' not in output


def test_a_checkpoint_that_does_not_fit(run_here, config, coco_root, tmp_path):
    torch.save({'meta': {}, 'state_dict': {'backbone.conv1.weight': torch.zeros(1)}}, tmp_path / 'x.pth')
    arguments = '--work-dir', tmp_path / 'work', '--cfg-options', f'data_root={coco_root}'
    code, output = run_here('test.py', config, tmp_path / 'x.pth', *arguments)
    assert code == 1
    assert 'x.pth holds no DAT, but backbone.conv1.weight, where the model has one' in output


def test_no_traceback_for_what_the_user_can_mend(run):
    output = run('bash', 'tools/dist_test.sh', '{config}', 'none.pth', '2', fails=True)
    assert output.strip() == 'error: checkpoint none.pth does not exist'
