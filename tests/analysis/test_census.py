"""The census of training steps on a GPU that is not there: kernels counted by hand, a peak that was measured."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers.counted import Attention, ChannelsLast, Checkpointed, PlainAttention, Reader
from helpers.narrow import ARCH, narrow
from mmengine.config import Config
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmdat.analysis.census import batch_size, count_module, count_training_step, usual_canvas, worst_canvas
from mmdat.analysis.census.tables import replace_table
from mmdat.backbones import DAT
from mmdat.errors import UserError

GIB = 2**30
COCO = ['cascade_mask_rcnn', 'mask_rcnn', 'retinanet']
ADE20K = ['semantic_fpn', 'upernet']
CARD = 20 * GIB  # of the 24 GiB of a card: the rest is for fragments, libraries and the context


def config(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


@pytest.mark.parametrize(
    'module, shape, amp, forward, backward',
    [
        # the product adds the bias; two products and a sum
        (nn.Linear(8, 16), (4, 8), None, 1, 3),
        # before it three casts, and after them three back
        (nn.Linear(8, 16), (4, 8), torch.float16, 4, 6),
        (nn.LayerNorm(8), (4, 8), None, 1, 2),
        # tall maps sum up the gradients of weight and bias in two steps
        (nn.LayerNorm(8), (2**17, 8), None, 1, 4),
        # cuDNN adds the bias in a kernel of its own
        (nn.Conv2d(4, 8, 3), (2, 4, 9, 9), None, 2, 3),
        # PyTorch's own kernel for depth-wise convolutions has the bias
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 9, 9), None, 1, 3),
        # takes channels-last maps as they are, by cuDNN
        (ChannelsLast(nn.Conv2d(4, 4, 3, groups=4)), (2, 9, 9, 4), None, 2, 3),
        # FlashAttention: q, k and v are cast; its backward pass takes four kernels, then casts and two sums
        (Attention(), (2, 49, 64), torch.bfloat16, 4, 9),
        # the memory-efficient kernel, forward and backward, and two sums of gradients
        (Attention(), (2, 49, 64), None, 1, 3),
        # rows of 49 biases are padded to 64: filled and copied
        (Attention(49), (2, 49, 64), None, 3, 8),
        # copies of q, k and v; product, scale, softmax, product
        (PlainAttention(), (2, 49, 64), None, 7, 9),
        # seven and the forward pass again, up to the last product, whose output nothing needs
        (Checkpointed(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))), (4, 8), None, 3, 9),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_kernels_are_those_counted_by_hand(module, shape, amp, forward, backward):
    parts = count_module(module, shape, amp).parts
    assert (parts['forward'].kernels.total(), parts['backward'].kernels.total()) == (forward, backward)


def test_bytes():
    report = count_module(nn.Linear(8, 16), (4, 8))
    x, weight, bias, out = 4 * 8, 8 * 16, 16, 4 * 16
    assert report.parts['forward'].moved == 4 * (x + weight + bias + out)
    products = (out + weight + x) + (out + x + weight)
    assert report.parts['backward'].moved == 4 * (products + out + bias)


def test_fused_attention_keeps_no_logits():
    logits = 4 * 4 * 1024**2
    assert count_module(Attention(), (1, 1024, 64)).peak < logits
    assert count_module(PlainAttention(), (1, 1024, 64)).peak > 2 * logits


def test_waits_and_copies():
    counts = count_module(Reader(), (4, 8)).parts['forward']
    assert counts.waits.total() == 7
    assert counts.copies.total() == 3
    assert all('helpers/counted.py:' in place for place in counts.waits | counts.copies)


@pytest.fixture(scope='module')
def blocks_of_all_kinds() -> DAT:
    return DAT(ARCH, block_patterns=('LS', 'PD', 'QN', 'ND'), key_strides=(2, 2, 1, 1), drop_path_rate=0.1)


@pytest.mark.parametrize('amp', [None, torch.bfloat16], ids=str)
def test_backbone_never_waits(blocks_of_all_kinds, amp):
    counts = count_module(blocks_of_all_kinds, (2, 3, 100, 132), amp).total('forward', 'backward')
    assert counts.kernels.total() > 500
    assert not counts.waits and not counts.copies


def test_peak_is_what_cpus_need(blocks_of_all_kinds, monkeypatch):
    """PyTorch's own allocator on CPUs tells of each allocation, where the same operators are computed."""
    monkeypatch.setenv('MMDAT_BACKEND', 'reference')
    x = torch.randn(2, 3, 96, 128, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outs = blocks_of_all_kinds(x)
        torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)

    report = count_module(blocks_of_all_kinds, tuple(x.shape))
    assert report.peak - report.kept['forward'] == pytest.approx(peak, rel=0.03)


def test_with_cp_frees_memory_for_kernels():
    reports = [count_module(DAT(ARCH, with_cp=with_cp), (2, 3, 224, 224)) for with_cp in (False, True)]
    assert reports[1].peak < 0.7 * reports[0].peak
    backward = [report.parts['backward'].kernels.total() for report in reports]
    assert backward[1] > backward[0] + 0.8 * reports[0].parts['forward'].kernels.total()


def test_leaves_this_process_alone():
    count_module(nn.Linear(8, 8), (4, 8))
    assert torch._C._get_privateuse1_backend_name() == 'privateuseone'
    assert torch.cuda.amp.common.amp_definitely_not_available() == (not torch.cuda.is_available())


def test_canvases():
    # the last batch of an epoch may have a landscape and a portrait
    assert worst_canvas(config('mask_rcnn/dat_t_3x_coco.py')) == (1344, 1344)
    assert usual_canvas(config('mask_rcnn/dat_t_3x_coco.py')) == (800, 1344)
    assert batch_size(config('cascade_mask_rcnn/dat_pp_b_3x_coco.py')) == 1
    assert worst_canvas(config('cascade_mask_rcnn/dat_pp_b_3x_coco.py')) == (800, 1344)
    assert worst_canvas(config('upernet/dat_t_160k_ade20k.py')) == (512, 512)
    assert worst_canvas(config('imagenet/dat_b_384_30e_in1k.py')) == (384, 384)


@pytest.mark.parametrize(
    'name, size',
    [
        ('retinanet/dat_t_3x_coco.py', (96, 128)),
        ('mask_rcnn/dat_t_3x_coco.py', (96, 128)),
        ('cascade_mask_rcnn/dat_t_3x_coco.py', (96, 128)),
        ('upernet/dat_t_160k_ade20k.py', (64, 64)),
        ('imagenet/dat_t_300e_in1k.py', (64, 64)),
    ],
)
def test_training_steps(name, size):
    cfg = config(name)
    narrow(cfg.model)
    report = count_training_step(cfg, size, batch=2)
    backbone = report.total('backbone', 'backward of the backbone')
    assert not backbone.waits and not backbone.copies
    for part in ('backbone', 'neck and heads', 'backward of neck and heads', 'backward of the backbone', 'update'):
        assert report.parts[part].kernels.total() > 0, part
    assert report.parts['backward of the backbone'].kernels.total() > 400
    # what the losses of heads are known for
    assert bool(report.parts['neck and heads'].waits) == ('imagenet' not in name)
    state = 4 * sum(report.at_peak[part] > 0 for part in ('weights', 'optimiser state', 'buckets'))
    assert state == 12


def rows_of_docs() -> dict[str, list[str]]:
    """The table of configs in `docs/gpu_census.md`, by config."""
    text = (ROOT / 'docs/gpu_census.md').read_text()
    return {cells[0]: cells[1:] for cells in re.findall(r'^\| (configs/\S+) \| ' + r'(.*) \|$', text, re.M)}
