"""What holds for every batch, size and setting within the documented ranges."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mmdat.backbones import DAT
from mmdat.layers.deformable_attention import OffsetNetwork

EACH_STAGE = dict(min_size=4, max_size=4)


def per_stage(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(values, **EACH_STAGE)


@st.composite
def dat_settings(draw) -> dict:
    """Settings of a small `DAT`; heads are multiples of the offset groups, channels of the heads."""
    groups = draw(per_stage(st.sampled_from([1, 2])))
    num_heads = [n * draw(st.sampled_from([1, 2])) for n in groups]
    first = draw(st.integers(0, 3))
    return dict(
        arch=dict(
            generation=draw(st.sampled_from(['cvpr', 'pp'])),
            embed_dims=draw(st.sampled_from([4, 12])),
            depths=draw(per_stage(st.integers(1, 2))),
            num_heads=num_heads,
            offset_groups=groups,
        ),
        img_size=draw(st.integers(1, 80)),
        in_channels=draw(st.integers(1, 4)),
        window_size=draw(st.integers(1, 8)),
        neighborhood_size=draw(st.sampled_from([1, 3, 7])),
        mlp_ratio=draw(st.sampled_from([0.5, 4.0])),
        block_patterns=draw(per_stage(st.text('LSNDPQ', min_size=1, max_size=2))),
        key_strides=draw(per_stage(st.integers(1, 8))),
        offset_kernel_sizes=draw(per_stage(st.sampled_from([1, 3, 9]))),
        num_points=draw(per_stage(st.integers(1, 4))),
        pos_bias=draw(st.sampled_from(['relative', 'fixed', 'dwconv', None])),
        offset_range=draw(st.sampled_from([None, 'map']) | st.floats(0, 8)),
        overlap_patches=draw(st.booleans()),
        lpu=draw(st.booleans()),
        conv_mlp=draw(st.booleans()),
        drop_path_rate=draw(st.floats(0, 0.9)),
        out_indices=sorted(draw(st.sets(st.integers(first, 3), min_size=1))),
        with_cp=draw(st.booleans()),
    )


images = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70))


def build(options: dict) -> DAT:
    torch.manual_seed(0)
    model = DAT(**options)
    for module in model.modules():
        if isinstance(module, OffsetNetwork):
            nn.init.normal_(module.proj.weight)  # so that points move
    return model


def for_all(trials, check) -> None:
    """Runs a check on drawn settings and images, the same ones in each short run."""
    full = trials(short=False, full=True)
    run = settings(
        max_examples=trials(short=40, full=500),
        deadline=None,
        derandomize=not full,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run(given(dat_settings(), images)(check))()


def test_maps_are_finite_and_of_the_documented_shape(trials):
    def check(options, image):
        batch, height, width = image
        model = build(options)
        maps = model(torch.randn(batch, options['in_channels'], height, width))
        assert len(maps) == len(options['out_indices'])
        for i, out in zip(options['out_indices'], maps):
            stride = 4 * 2**i
            channels = options['arch']['embed_dims'] * 2**i
            assert out.shape == (batch, channels, -(-height // stride), -(-width // stride))
            assert out.is_contiguous()
            assert out.isfinite().all()
        sum(out.square().sum() for out in maps).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    for_all(trials, check)


def test_permuting_the_batch_permutes_the_maps(trials):
    def check(options, image):
        batch, height, width = image
        model = build(options).double().eval()
        x = torch.randn(batch, options['in_channels'], height, width, dtype=torch.float64)
        order = torch.randperm(batch)
        with torch.no_grad():
            for permuted, out in zip(model(x[order]), model(x)):
                torch.testing.assert_close(permuted, out[order], atol=1e-9, rtol=0)

    for_all(trials, check)
