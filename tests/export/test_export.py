"""Files that were exported, beside PyTorch at sizes and batches that the export itself did not compare."""

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import DATA
from helpers.exported import shallow_config
from helpers.predictors import save_random, write_image
from torch import nn

from mmdat.apis import init_model
from mmdat.errors import UserError
from mmdat.export import LIMIT, export_model, part_of
from mmdat.export import export as module
from mmdat.export.description import describe, normalise
from mmdat.export.export import find_shape, load_exported
from mmdat.export.parts import Part
from mmdat.export.program import load_program, write_program

onnx = pytest.importorskip('onnx', reason='exporting to ONNX needs the packages onnx and onnxruntime')
pytest.importorskip('onnxruntime', reason='exporting to ONNX needs the packages onnx and onnxruntime')

REAL = {
    'classifier': 'flowers5/val/tulips',
    'retinanet': 'coco/val2017',
    'semantic_fpn': 'ade',
    'upernet': 'camvid/images/validation',
}
SHAPE = (64, 96)


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    """`build(name, generation)`: a narrow model with random weights."""
    models = {}

    def build(name, generation='cvpr'):
        if (name, generation) not in models:
            cfg = shallow_config(name, generation)
            path = tmp_path_factory.mktemp('weights') / 'x.pth'
            models[name, generation] = init_model(cfg, save_random(cfg, path), 'cpu')
        return models[name, generation]

    return build


def photos(name: str) -> list[str]:
    """Real images, where there are any."""
    found = sorted(path for path in (DATA / REAL[name]).rglob('*.jpg')) if DATA.is_dir() else []
    return [str(path) for path in found[:2]]


@pytest.mark.parametrize(
    ('name', 'generation', 'dynamic', 'grid_sample'),
    [
        ('classifier', 'cvpr', False, False),
        ('retinanet', 'pp', True, False),
        ('semantic_fpn', 'cvpr', True, False),
        ('upernet', 'pp', True, True),
    ],
)
def test_onnx(build, tmp_path, name, generation, dynamic, grid_sample):
    model, path = build(name, generation), tmp_path / 'sub' / 'model.onnx'
    report = export_model(model, str(path), photos(name), SHAPE, dynamic, grid_sample=grid_sample)
    assert [c.shape[0] for c in report.comparisons] == ([1, 2, 2] if dynamic else [1, 2])
    assert all(set(c.differences) == set(report.outputs) for c in report.comparisons)
    assert all(0 < c.worst[1] < LIMIT for c in report.comparisons)
    assert [file.name for file in path.parent.iterdir()] == ['model.onnx']

    file, part = onnx.load(str(path)), part_of(model)
    assert ('GridSample' in {node.op_type for node in file.graph.node}) == grid_sample
    assert {entry.key: entry.value for entry in file.metadata_props} == describe(model, part)
    sides = [side.dim_param or side.dim_value for side in file.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ['batch', 3, *(('height', 'width') if dynamic else SHAPE)]

    run = load_exported(str(path))
    height, width = (75, 41) if dynamic else SHAPE
    images = torch.randn(3, 3, height, width)
    with torch.no_grad():
        expected = part(images)
    for ours, theirs in zip(run(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)
    if name == 'classifier':
        torch.testing.assert_close(expected[0].sum(1), torch.ones(3))
    elif name == 'retinanet':
        assert [tuple(e.shape) for e in expected[:3]] == [(3, 720, 10, 6), (3, 720, 5, 3), (3, 720, 3, 2)]
    else:
        assert expected[0].shape[2:] == (height, width)


def test_parts_are_what_the_libraries_compute(build):
    images = torch.randn(2, 3, *SHAPE)
    with torch.no_grad():
        model = build('classifier')
        assert torch.equal(part_of(model)(images)[0], model(images, mode='tensor').softmax(1))
        model = build('retinanet', 'pp')
        raw = model(images, mode='tensor')
        assert all(map(torch.equal, part_of(model)(images), [*raw[0], *raw[1]]))
        model = build('upernet', 'pp')
        metas = [dict(img_shape=SHAPE, ori_shape=SHAPE)] * 2
        assert torch.equal(part_of(model)(images)[0], model.encode_decode(images, metas))


def test_metadata_tells_how_images_are_prepared(build):
    model = build('retinanet', 'pp')
    described = describe(model, part_of(model))
    pixels = np.random.default_rng(0).integers(0, 255, (1, *SHAPE, 3), np.uint8)
    chw = torch.from_numpy(pixels[0].transpose(2, 0, 1))
    expected = model.data_preprocessor(dict(inputs=[chw]), False)['inputs']
    torch.testing.assert_close(normalise(model, pixels), expected)
    assert (described['channel_order'], json.loads(described['pad_size_divisor'])) == ('RGB', 32)
    assert json.loads(described['mean']) == pytest.approx([123.675, 116.28, 103.53])
    assert len(json.loads(described['classes'])) == 80
    assert json.loads(described['bbox_head'])['anchor_generator']['strides'] == [8, 16, 32, 64, 128]


@pytest.mark.parametrize('name', ['classifier', 'semantic_fpn'])
def test_normalisation_of_other_libraries(build, name):
    model = build(name)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 512, 512, 3), np.uint8)
    chw = torch.from_numpy(pixels[0].transpose(2, 0, 1))
    expected = model.data_preprocessor(dict(inputs=[chw]) if name != 'classifier' else dict(inputs=chw[None]))
    torch.testing.assert_close(normalise(model, pixels), expected['inputs'])


def test_shapes_of_configs(build):
    assert find_shape(build('classifier')) == (128, 128)
    assert find_shape(build('retinanet', 'pp')) == (800, 1344)
    assert find_shape(build('semantic_fpn')) == (512, 512)


@pytest.fixture
def pretend(monkeypatch):
    """`pretend(part, change)`: nothing is exported, and the file computes what the part does, changed."""

    def pretend(part, change=lambda out: out):
        monkeypatch.setattr(module, 'write_onnx', lambda *args: None)
        monkeypatch.setattr(
            module, 'load_exported', lambda p: lambda images: [change(o) for o in part(images)]
        )

    return pretend


@pytest.mark.parametrize(
    ('factor', 'difference'), [(1.001, r'1\.0e-03 \(scores\)'), (float('nan'), r'nan \(scores\)')]
)
def test_what_differs_is_not_kept(build, tmp_path, pretend, factor, difference):
    model, path = build('classifier'), tmp_path / 'x.onnx'
    path.write_text('old')
    pretend(part_of(model), lambda out: factor * out)
    with pytest.raises(UserError, match=r'x\.onnx is not kept, .*: batch 1, 64 x 96: ' + difference):
        export_model(model, str(path), shape=SHAPE)
    assert path.read_text() == 'old'
    assert [file.name for file in tmp_path.iterdir()] == ['x.onnx']


def test_images_that_are_given_are_compared_with(build, tmp_path, pretend, monkeypatch):
    """Stretched to the shape, in the channel order of the model."""
    seen = []
    compare = module.compare
    monkeypatch.setattr(module, 'compare', lambda part, run, x: seen.append(x) or compare(part, run, x))
    model = build('classifier')
    pretend(part_of(model))
    images = [write_image(tmp_path / f'{seed}.png', seed=seed) for seed in range(2)]
    export_model(model, str(tmp_path / 'x.onnx'), images, SHAPE)
    pixels = [cv2.resize(cv2.imread(image), SHAPE[::-1]) for image in images]
    assert torch.equal(seen[1], normalise(model, np.stack([pixels[1], pixels[0]])))


# tiles of 8 x 8 divide maps of the first size, and not those of the second, of which others are alike
@pytest.mark.parametrize(('shape', 'dynamic'), [(SHAPE, False), ((75, 91), True)])
def test_program(tmp_path, shape, dynamic):
    """It runs without this package: its graph has PyTorch's own operations only."""
    cfg = shallow_config('classifier', 'pp')
    cfg.model.backbone.arch.update(depths=(1, 1, 1, 1))
    cfg.model.backbone.block_patterns = ('N', 'D', 'D', 'D')
    cfg.model.backbone.out_indices = (0, 1)
    cfg.model.backbone.pop('init_cfg')
    model = init_model(cfg, save_random(cfg, tmp_path / 'x.pth'), 'cpu')
    path = tmp_path / 'x.pt2'
    report = export_model(model, str(path), shape=shape, dynamic=dynamic, backbone_only=True)
    sizes = {tuple(comparison.shape[2:]) for comparison in report.comparisons}
    assert len(sizes) == 1 + dynamic
    assert all(comparison.worst[1] < LIMIT for comparison in report.comparisons)
    files = {'mmdat/kind': ''}  # an empty dict would not be filled
    program = torch.export.load(path, extra_files=files)
    described = describe(model, part_of(model, backbone_only=True))
    assert files == {f'mmdat/{key}': text for key, text in described.items()}
    assert not [node for node in program.graph.nodes if 'mmdat' in str(node.target)]
    for size in sizes:
        images = torch.randn(5, 3, *size)
        with torch.no_grad():
            for ours, theirs in zip(program.module()(images), model.backbone(images), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


class Convolution(Part):
    names = ('map',)

    def forward(self, x):
        return (self.model(x),)


def test_a_program_says_which_images_it_does_not_take(tmp_path):
    part = Convolution(nn.Conv2d(3, 2, 3))
    write_program(part, torch.randn(2, 3, 8, 8), str(tmp_path / 'x.pt2'), {}, dynamic=False)
    run = load_program(str(tmp_path / 'x.pt2'))
    assert run(torch.randn(5, 3, 8, 8))[0].shape == (5, 2, 6, 6)
    with pytest.raises(
        UserError,
        match=r'does not take images \(2, 3, 9, 8\): Guard failed: x\.size\(\)\[2\] == 8.* --shape',
    ):
        run(torch.randn(2, 3, 9, 8))


def test_maps_of_another_size_are_an_error():
    part = Convolution(nn.Conv2d(3, 2, 3))
    with pytest.raises(
        UserError, match=r'output map of the exported file is \(1, 2, 5, 6\) where PyTorch has'
    ):
        module.compare(part, lambda images: [torch.zeros(1, 2, 5, 6)], torch.zeros(1, 3, 8, 8))
