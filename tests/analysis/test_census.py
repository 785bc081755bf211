"""The census of training steps on a GPU that is not there: beside counts by hand and a measured peak."""

import re
from math import prod

import pytest
import torch
from conftest import ROOT
from helpers.counted import Attention, ChannelsLast, Checkpointed, Copier, Gatherer, PlainAttention, Reader
from helpers.narrow import ARCH, narrow
from mmengine.config import Config
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmdat.analysis.census import batch_size, count_module, count_training_step, usual_canvas, worst_canvas
from mmdat.analysis.census.tables import USUAL_BOXES, Step, replace_table
from mmdat.backbones import DAT
from mmdat.errors import UserError
from mmdat.layers import DeformableAttention, WindowAttention
from mmdat.ops.deformable.backends import BACKENDS

MIB, GIB = 2**20, 2**30
COCO = ['cascade_mask_rcnn', 'mask_rcnn', 'retinanet']
ADE20K = ['semantic_fpn', 'upernet']
FORWARD = ['backbone', 'neck and heads']
BACKWARD = [f'backward of {part}' for part in ('the backbone', 'neck and heads')]
CARD = 20 * GIB  # of the 24 GiB of a card: the rest is for fragments, libraries and the context


def config(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


@pytest.mark.parametrize(
    ('module', 'shape', 'amp', 'forward', 'backward'),
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


def test_copies_are_of_the_same_mode():
    """Otherwise PyTorch copies the mode and memory that is not there, and crashes some time later."""
    assert count_module(Copier(), (4, 8)).parts['forward'].kernels == {'clone.default': 1, 'add.Tensor': 1}


def test_bytes():
    report = count_module(nn.Linear(8, 16), (4, 8))
    x, weight, bias, out = 4 * 8, 8 * 16, 16, 4 * 16
    assert report.parts['forward'].moved == 4 * (x + weight + bias + out)
    products = (out + weight + x) + (out + x + weight)
    assert report.parts['backward'].moved == 4 * (products + out + bias)


# Of 1000 rows of 8 numbers in float32, by an index of 8 bytes a row. 5000 rows are all, some of them again.
@pytest.mark.parametrize(('taken', 'read'), [(3, 3), (5000, 1000)])
@pytest.mark.parametrize('gather', ['index_select', 'index', 'gather', 'embedding'])
def test_bytes_of_gathers(gather, taken, read):
    counts = count_module(Gatherer(gather, taken), (1000, 8), backward=False).parts['forward']
    index = 8 * taken
    assert counts.kernels.total() == 1
    assert counts.moved == 4 * 8 * (read + taken) + index


def test_fused_attention_keeps_no_logits():
    logits = 4 * 4 * 1024**2
    assert count_module(Attention(), (1, 1024, 64)).peak < logits
    assert count_module(PlainAttention(), (1, 1024, 64)).peak > 2 * logits


def test_shifted_windows_need_a_quarter_of_plain_pytorch():
    """Which moved 1688 MiB, and held 336 MiB beside the output, on the largest map of DAT-T for detection."""
    shape = 2, 200, 336, 96
    report = count_module(WindowAttention(96, 3, 7, shifted=True), shape, torch.bfloat16, backward=False)
    output = 2 * prod(shape)
    assert report.parts['forward'].moved < 1688 * MIB / 4
    assert report.peak - report.kept['forward'] - output < 336 * MIB / 4


def test_waits_and_copies():
    counts = count_module(Reader(), (4, 8)).parts['forward']
    assert counts.waits.total() == 7
    assert counts.copies.total() == 3
    assert all('helpers/counted.py:' in place for place in counts.waits | counts.copies)


@pytest.fixture(scope='module')
def blocks_of_all_kinds() -> DAT:
    return DAT(ARCH, block_patterns=('LS', 'PD', 'QN', 'ND'), key_strides=(2, 2, 1, 1), drop_path_rate=0.1)


def test_backbone_never_waits(blocks_of_all_kinds):
    counts = count_module(blocks_of_all_kinds, (2, 3, 100, 132), torch.bfloat16).total()
    assert counts.kernels.total() > 500
    assert not counts.waits
    assert not counts.copies


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


@pytest.mark.parametrize('backend', [name for name in BACKENDS if name != 'cpu'])
def test_backends_are_counted_inside(backend, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    module = DeformableAttention(32, num_heads=2, offset_groups=1, map_size=(8, 8))
    counts = count_module(module, (1, 8, 8, 32), torch.bfloat16).total()
    assert not [name for name in counts.kernels if name.startswith('mmdat')]
    assert counts.kernels.total() > 60
    assert not counts.waits
    if backend == 'triton':
        assert counts.kernels['forward_kernel'] == counts.kernels['queries_kernel'] == 1
    sampling = ('sample_kernel', 'locations_kernel', 'features_kernel')
    assert [counts.kernels[name] for name in sampling] == [backend != 'reference'] * 3


def test_with_cp_frees_memory_for_kernels(blocks_of_all_kinds):
    stage, shape = blocks_of_all_kinds.stages[0], (2, 56, 56, 16)
    stored = count_module(stage, shape)
    stage.with_cp = True
    try:
        computed_again = count_module(stage, shape)
    finally:
        stage.with_cp = False
    assert computed_again.peak < 0.8 * stored.peak
    more = computed_again.total().kernels.total() - stored.total().kernels.total()
    # all but the last product of each block
    assert more == pytest.approx(stored.parts['forward'].kernels.total(), rel=0.15)


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
    ('name', 'size'),
    [
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
    assert not backbone.waits
    assert not backbone.copies
    assert report.parts.keys() == {*FORWARD, *BACKWARD, 'update'}
    for part in report.parts:
        assert report.parts[part].kernels.total() > 0, part
    update = report.parts['update']
    assert {name.partition('.')[0] for name in update.kernels} == {'_fused_adamw_', '_foreach_add_'}
    assert not update.copies
    assert report.parts['backward of the backbone'].kernels.total() > 400
    # what the losses of heads are known for
    assert bool(report.parts['neck and heads'].waits) == ('imagenet' not in name)
    state = 4 * sum(report.at_peak[part] > 0 for part in ('weights', 'optimiser state', 'buckets'))
    assert state == 12


def rows_of_docs() -> dict[str, list[str]]:
    """The table of configs in `docs/gpu_census.md`, by config."""
    text = (ROOT / 'docs/gpu_census.md').read_text()
    return {
        row[0]: row[1:]
        for row in re.findall(r'^\| configs/(\S+) ' + r'\| ([^|]*) ' * 12 + r'\|$', text, re.M)
    }


@pytest.mark.parametrize('folder', [*COCO, *ADE20K])
def test_shipped_configs_fit_into_a_card(folder):
    rows = rows_of_docs()
    names = sorted(f'{folder}/{path.name}' for path in (ROOT / 'configs' / folder).glob('*.py'))
    assert names
    assert rows.keys() >= set(names)
    for name in names:
        *_, peak, _, worst_peak, waits, _ = rows[name]
        assert max(float(peak), float(worst_peak)) * GIB <= CARD, name
        assert waits == '0', name
    images, usual, *_, worst, _, _, _ = rows[names[1]]
    cfg = config(names[1])
    assert int(images) == batch_size(cfg)
    assert usual == '{} x {}'.format(*usual_canvas(cfg))
    assert worst == '{} x {}'.format(*worst_canvas(cfg))


def test_docs_are_of_this_code():
    """One row is computed again; the command in the docs prints all of them."""
    name = 'retinanet/dat_t_1x_coco.py'
    cfg = config(name)
    canvases = usual_canvas(cfg), worst_canvas(cfg)
    report = count_training_step(cfg, canvases[0], boxes=USUAL_BOXES)
    here = Step(name, batch_size(cfg), canvases, report, report).cells()[1:]
    printed = rows_of_docs()[name]
    # kernels of the backbone, of the rest and of the update, bytes moved, and the peak
    for column in range(2, 8):
        assert float(here[column]) == pytest.approx(float(printed[column]), rel=0.02), column


def test_tables_go_where_they_belong(tmp_path):
    path = tmp_path / 'doc.md'
    path.write_text('before\n<!-- census steps -->\nold\n<!-- end -->\nafter\n')
    replace_table(path, 'steps', '| new |')
    assert path.read_text() == 'before\n<!-- census steps -->\n\n| new |\n\n<!-- end -->\nafter\n'
    with pytest.raises(UserError, match='<!-- census blocks -->'):
        replace_table(path, 'blocks', '')
