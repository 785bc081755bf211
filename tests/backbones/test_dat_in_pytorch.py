"""What PyTorch makes of the network: checkpointed, in autocast, compiled, distributed, traced, on meta."""

import pytest
import torch
from helpers.narrow import ARCH, CVPR, PLUS, narrow_dat
from mmengine.utils.dl_utils import is_norm
from torch import nn

from mmdat.backbones import DAT
from mmdat.layers.deformable_attention import OffsetNetwork


@pytest.mark.parametrize('settings', [{}, PLUS])
def test_activation_checkpointing_changes_nothing(settings):
    results = []
    for with_cp in (False, True):
        model = narrow_dat(**settings, with_cp=with_cp, drop_path_rate=0.5)
        torch.manual_seed(1)
        maps = model(torch.randn(2, 3, 64, 80))
        sum(out.square().mean() for out in maps).backward()
        results.append([*maps, *(p.grad for p in model.parameters())])
    for without, with_ in zip(*results):
        torch.testing.assert_close(with_, without, atol=0, rtol=0)


def test_activation_checkpointing_keeps_less():
    def saved(with_cp: bool) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            narrow_dat(with_cp=with_cp)(torch.randn(1, 3, 128, 128))
        return sum(sizes)

    assert saved(with_cp=True) < saved(with_cp=False) / 3


@pytest.mark.parametrize('settings', [CVPR, PLUS, dict(block_patterns=('PP', 'LS', 'QQ', 'QQ'))])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_autocast(dtype, tolerance, settings):
    model = narrow_dat(**settings)
    x = torch.randn(2, 3, 64, 96)
    exact = model(x)
    with torch.autocast('cpu', dtype=dtype):
        maps = model(x)
        locations = model.sampling_locations(x)
    assert all(location.dtype == torch.float32 for location in locations.values())
    for out, expected in zip(maps, exact):
        assert (out.float() - expected).square().mean().sqrt() < tolerance * expected.std()
    sum(out.float().square().mean() for out in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ('generation', 'block_patterns'), [('cvpr', ('L', 'S', 'D', 'D')), ('pp', ('N', 'D', 'N', 'D'))]
)
@pytest.mark.parametrize('training', [False, True])
def test_compiles_without_graph_breaks(training, generation, block_patterns):
    """A block of each kind, because tracing takes seconds."""
    arch = ARCH | dict(depths=(1, 1, 1, 1), generation=generation)
    settings = dict(arch=arch, block_patterns=block_patterns, key_strides=(8, 4, 2, 1))
    model = narrow_dat(**settings).train(training)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    x = torch.randn(1, 3, 64, 64)
    with torch.set_grad_enabled(training):
        for out, expected in zip(compiled(x), model(x)):
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_two_graphs_of_the_whole_network_serve_all_sizes():
    """The first size, and all others, whether windows divide their maps or not. All are small: for large maps
    PyTorch convolves otherwise on CPUs, and makes another graph."""
    arch = ARCH | dict(depths=(1, 1, 1, 1))
    model = narrow_dat(arch=arch, block_patterns=('S', 'D', 'D', 'D'), out_indices=(0, 1))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    for size in [(64, 64), (96, 128), (130, 75), (112, 140)]:
        x = torch.randn(1, 3, *size)
        for out, expected in zip(compiled(x), model(x)):
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert len(graphs) == 2


@pytest.mark.parametrize('settings', [{}, PLUS])
def test_ddp_finds_no_unused_parameters(tmp_path, settings):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(narrow_dat(**settings, with_cp=True))
        for _ in range(2):  # DDP complains in the second step
            sum(out.mean() for out in model(torch.randn(1, 3, 64, 64))).backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ('settings', 'used'),
    [({}, (1, 2, 3)), (PLUS, (3,)), (dict(out_indices=(1, 3)), (3,)), (dict(frozen_stages=1), (2, 3))],
)
def test_ddp_trains_heads_that_leave_maps_out(tmp_path, settings, used):
    """The norms of the maps that are left out get gradients of zero."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        backbone = narrow_dat(**settings)
        model = nn.parallel.DistributedDataParallel(backbone)
        for _ in range(3):
            maps = dict(zip(backbone.out_indices, model(torch.randn(1, 3, 64, 64))))
            sum(maps[i].square().sum() for i in used).backward()
    finally:
        torch.distributed.destroy_process_group()
    for i in backbone.out_indices:
        for p in getattr(backbone, f'norm{i}').parameters():
            assert (p.grad is not None) == p.requires_grad
            assert not p.requires_grad or bool(p.grad.any()) == (i in used)


def test_gradients_of_the_norms_of_other_maps_change_no_number():
    results = []
    for training in (True, False):
        model = narrow_dat().train(training)
        nn.init.constant_(model.norm0.weight, torch.inf)
        maps = model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        sum(out.square().sum() for out in maps[1:]).backward()
        results.append([*maps[1:], *(p.grad for n, p in model.named_parameters() if 'norm0' not in n)])
        assert (model.norm0.weight.grad is None) == (not training)
    assert all(torch.equal(with_, without) for with_, without in zip(*results))


def test_class_activation_maps():
    """mmpretrain's `vis_cam.py` takes the last norm of the backbone, and an output of it `(B, C, H, W)`."""
    backbone = narrow_dat(out_indices=(3,)).eval()
    head = nn.Linear(128, 5)
    *_, (name, target) = [(n, m) for n, m in backbone.named_modules() if is_norm(m)]
    assert name == 'norm3'
    activations, gradients = [], []

    def record(module, args, out):
        activations.append(out)
        out.register_hook(gradients.append)

    target.register_forward_hook(record)
    (out,) = backbone(torch.randn(1, 3, 96, 160))
    head(out.mean((2, 3)))[0, 2].backward()
    assert activations[0].shape == gradients[0].shape == (1, 128, 3, 5)
    cam = (gradients[0].mean((2, 3), keepdim=True) * activations[0]).sum(1)
    torch.testing.assert_close(cam * 15, torch.einsum('bchw,c->bhw', out, head.weight[2]))


TRACED = [
    CVPR,
    CVPR | dict(pos_bias='fixed'),
    PLUS,
    PLUS | dict(offset_range=0),
    dict(key_strides=(8, 4, 2, 1), block_patterns=('P', 'P', 'LQ', 'QP')),
]


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('settings', TRACED)
@pytest.mark.parametrize('backend', [None, 'portable'])
def test_a_trace_is_right_at_other_sizes(settings, backend, monkeypatch):
    if backend:
        monkeypatch.setenv('MMDAT_BACKEND', backend)
    model = narrow_dat(**settings).double().eval()
    for module in model.modules():
        if isinstance(module, OffsetNetwork):
            nn.init.normal_(module.proj.weight)  # so that the unit of offsets matters
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 3, 96, 128).double(), check_trace=False)
        for size in [(64, 64), (130, 75), (224, 224), (1, 1), (33, 300)]:
            x = torch.randn(2, 3, *size, dtype=torch.float64)
            for out, expected in zip(traced(x), model(x)):
                torch.testing.assert_close(out, expected, atol=1e-9, rtol=0, msg=str(size))


def load_into_empty(model: DAT, weights: dict) -> None:
    model.to_empty(device='cpu')
    model.load_state_dict(weights)


def assign(model: DAT, weights: dict) -> None:
    model.load_state_dict(weights, assign=True)


@pytest.mark.parametrize('fill', [load_into_empty, assign])
@pytest.mark.parametrize('settings', [CVPR, PLUS, dict(block_patterns=('LS', 'PQ', 'SN', 'DL'))])
def test_built_on_the_meta_device_and_loaded(settings, fill):
    expected = narrow_dat(**settings).eval()
    with torch.device('meta'):
        model = narrow_dat(**settings).eval()
    fill(model, expected.state_dict())
    img = torch.randn(1, 3, 96, 64)
    for ours, theirs in zip(model(img), expected(img)):
        assert torch.equal(ours, theirs)


def test_every_layer_can_initialise_itself_after_the_meta_device():
    """As FSDP does: `to_empty()` and `reset_parameters()`, module by module."""
    for settings in (CVPR, PLUS, dict(pos_bias='fixed'), dict(pos_bias='dwconv')):
        with torch.device('meta'):
            model = narrow_dat(**settings)
        torch.manual_seed(0)
        for module in model.modules():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if tensors:
                module.to_empty(device='cpu', recurse=False)
                module.reset_parameters()
        fresh = narrow_dat(**settings)
        for (name, ours), theirs in zip(model.state_dict().items(), fresh.state_dict().values()):
            assert not ours.is_meta
            torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.5, atol=0.01, msg=name)
