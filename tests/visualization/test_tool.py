"""`tools/visualize.py` from arguments to files and exit codes, with a Swin beside."""

import re
import runpy
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from helpers.tasks import CLASSIFIER
from mmengine.config import Config

from mmdat.demo.untrained import save_untrained


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Configs and checkpoints of classifiers: with DAT, with Swin, with a DAT that has windows only."""
    folder = tmp_path_factory.mktemp('tool')
    image = np.random.default_rng(0).integers(0, 255, (100, 150, 3), np.uint8)
    cv2.imwrite(str(folder / 'image.png'), cv2.resize(image, (300, 200)))
    backbones = dict(
        dat=CLASSIFIER['model']['backbone'],
        swin=dict(
            type='SwinTransformer',
            arch=dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
            img_size=64,
            window_size=2,
        ),
        windows=CLASSIFIER['model']['backbone'] | dict(block_patterns=('LS',) * 4),
    )
    for name, backbone in backbones.items():
        cfg = Config(CLASSIFIER | dict(model=CLASSIFIER['model'] | dict(backbone=backbone)))
        cfg.dump(folder / f'{name}.py')
        save_untrained(cfg, folder / f'{name}.pth')
    return folder


def call(monkeypatch, capsys, *args):
    """Runs the tool: exit code, output, errors."""
    monkeypatch.setattr(sys, 'argv', ['visualize.py', *map(str, args)])
    code = 0
    try:
        runpy.run_path(str(ROOT / 'tools/visualize.py'), run_name='__main__')
    except SystemExit as error:
        code = error.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_pictures_beside_swin(files, tmp_path, monkeypatch, capsys):
    model = [files / 'dat.py', files / 'dat.pth', files / 'image.png', '--out', tmp_path, '--device', 'cpu']
    code, out, err = call(monkeypatch, capsys, *model, '--query', 150, 100, '--query', 100, 50)
    assert (code, err) == (0, '')
    for kind in ('points', 'keys', 'attention'):
        assert str(tmp_path / f'image_{kind}.png') in out
    alone = cv2.imread(str(tmp_path / 'image_attention.png'))
    swin = ['--swin-config', files / 'swin.py', '--swin-checkpoint', files / 'swin.pth']
    attention = ['--what', 'attention', '--query', 150, 100, '--query', 100, 50]
    assert call(monkeypatch, capsys, *model, *attention, *swin)[0] == 0
    beside = cv2.imread(str(tmp_path / 'image_attention.png'))
    assert beside.shape[1] == alone.shape[1]
    assert beside.shape[0] > 1.3 * alone.shape[0]  # a row more


def test_one_line_each(files, tmp_path, monkeypatch, capsys):
    out = ['--out', tmp_path, '--device', 'cpu']
    dat = [files / 'dat.py', files / 'dat.pth', files / 'image.png', *out]
    code, _, err = call(monkeypatch, capsys, *dat, '--query', 999, 5)
    assert (code, err) == (
        1,
        f'error: {files}/image.png: the query 999 5 lies outside the image of 300 x 200 pixels\n',
    )
    windows = [files / 'windows.py', files / 'windows.pth', files / 'image.png', *out]
    code, _, err = call(monkeypatch, capsys, *windows)
    assert code == 1
    assert err.count('\n') == 1
    assert err.startswith('error: the DAT of ImageClassifier has no deformable attention to look at')
    swin = [files / 'swin.py', files / 'swin.pth', files / 'image.png', *out]
    assert call(monkeypatch, capsys, *swin)[::2] == (1, 'error: ImageClassifier has no DAT backbone\n')
    for options, message in [
        (['--swin-config', 'x.py'], '--swin-config and --swin-checkpoint belong together'),
        (['--top-k', 0], 'argument --top-k: must be at least 1, got 0'),
        (['--query', 'a', 'b'], "argument --query: invalid float value: 'a'"),
    ]:
        code, _, err = call(monkeypatch, capsys, *dat, *options)
        assert code == 2
        assert message in err
        assert err.count('\n') == 1


def test_folders_and_patterns(files, tmp_path, monkeypatch, capsys):
    """As with `tools/infer.py`: names below what was named, without the pictures that lie there already."""
    photos = tmp_path / 'photos'
    for name in ('a/x.png', 'b/x.png', 'pictures/old.png'):
        (photos / name).parent.mkdir(parents=True)
        (photos / name).symlink_to(files / 'image.png')
    model = [files / 'dat.py', files / 'dat.pth']
    points = ['--what', 'points', '--out', photos / 'pictures', '--device', 'cpu']
    for inputs in ([photos, '--recursive'], [photos / '**/*.png', 'none.png']):
        code, out, err = call(monkeypatch, capsys, *model, *inputs, *points)
        assert [line for line in out.splitlines() if line.endswith('.png')] == [
            f'{photos}/pictures/{folder}/x_points.png' for folder in 'ab'
        ]
        assert (code, err) == ((1, 'error: none.png does not exist\n') if 'none.png' in inputs else (0, ''))
    nothing = [files / 'dat.py', 'none.pth', photos / '*.gif', *points]
    assert call(monkeypatch, capsys, *nothing) == (
        1,
        '',
        f'error: no images to look at: {photos}/*.gif matches no images\n',
    )


def test_python_of_the_docs(files, tmp_path):
    """The block of `docs/visualization.md` that draws one picture."""
    page = (ROOT / 'docs/visualization.md').read_text()
    code = re.search(r'```python\n(from mmdat.visualization.*?)```', page, re.DOTALL)[1]
    image = cv2.resize(
        cv2.imread(str(files / 'image.png')), (200, 400)
    )  # with the block's query in its middle
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    paths = {'CONFIG': files / 'dat.py', 'CHECKPOINT': files / 'dat.pth', 'image.jpg': tmp_path / 'image.png'}
    for name, path in paths.items():
        assert f"'{name}'" in code
        code = code.replace(f"'{name}'", repr(str(path)))
    found = {}
    exec(code, found)
    assert found['picture'].dtype == np.uint8
    assert found['picture'].shape[2] == 3
    assert found['picture'].std() > 10
