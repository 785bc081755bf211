"""`tools/export.py`: its options, and what it answers to what it cannot do."""

import re

import pytest
from conftest import ROOT
from helpers.exported import shallow_config
from helpers.predictors import save_random, write_image


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Config and checkpoint of each kind."""
    folder = tmp_path_factory.mktemp('models')
    found = {}
    for kind in ('classifier', 'mask_rcnn'):
        cfg = shallow_config(kind)
        cfg.dump(folder / f'{kind}.py')
        found[kind] = str(folder / f'{kind}.py'), save_random(cfg, folder / f'{kind}.pth')
    return found


def test_a_file_and_what_is_said_of_it(folder, run_here, files):
    pytest.importorskip('onnx', reason='exporting to ONNX needs the packages onnx and onnxruntime')
    pytest.importorskip('onnxruntime', reason='exporting to ONNX needs the packages onnx and onnxruntime')
    write_image(folder / 'a.jpg')
    options = ('--backbone-only', '--shape', '64', '48', '--images', 'a.jpg', '--benchmark')
    code, output = run_here('export.py', *files['mask_rcnn'], '--out', 'new/x.onnx', *options)
    assert code == 0, output
    assert re.search(r'new/x\.onnx: backbone, ONNX opset 17, \d+\.\d MB\n', output)
    assert 'input: (batch, 3, 64, 48), normalised; outputs: stage0, stage1, stage2, stage3\n' in output
    assert re.search(r'\n  batch 1, 64 x 48: \d\.\de-0[678] \(stage\d\)\n', output)
    assert re.search(
        r'latency of one image: \d+\.\d ms beside \d+\.\d ms in PyTorch, ratio \d+\.\d\d ', output
    )


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        (
            'mask_rcnn',
            ['--out', 'x.pt2'],
            'MaskRCNN cannot be exported whole: NMS and RoIAlign stand between its parts; '
            '--backbone-only exports its backbone',
        ),
        ('classifier', ['--out', 'x.engine'], 'x.engine must end in .onnx or .pt2'),
        (
            'classifier',
            ['--out', 'x.pt2', '--shape', '8', '64'],
            'images must be at least 32 pixels high and wide, got 8 x 64',
        ),
        (
            'classifier',
            ['--out', 'x.pt2', '--images', 'none.jpg'],
            'none.jpg cannot be read (No such file or directory)',
        ),
        (
            'classifier',
            ['--out', 'data/a/0.png/x.pt2'],
            'data/a/0.png/x.pt2 cannot be written: data/a/0.png: File exists',
        ),
    ],
)
def test_errors(folder, run_here, files, kind, options, message):
    code, output = run_here('export.py', *files[kind], *options)
    assert code == 1
    assert re.findall('error: (.*)', output) == [message]
    assert not list(folder.glob('*x.*'))


def test_missing_packages(folder, run_here, files, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
    monkeypatch.setitem(__import__('sys').modules, 'onnx', None)
    code, output = run_here('export.py', *files['classifier'], '--out', 'x.onnx')
    assert code == 1
    (error,) = re.findall('error: (.*)', output)
    assert error.startswith('ONNX files need the packages onnx and onnxruntime')


def test_options_of_the_docs(run_here):
    code, output = run_here('export.py', '--help')
    assert code == 0
    named = set(re.findall(r'--[a-z-]+', (ROOT / 'docs/export.md').read_text()))
    assert named - {'--cfg-options'} == set(re.findall(r'--[a-z-]+', output)) - {'--help', '--cfg-options'}
