import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/demo/mask_rcnn_dat_narrow_shapes.py'


def call(*args, returncode=0):
    result = subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == returncode, result.stderr
    return result


@pytest.mark.slow
def test_from_data_to_picture(tmp_path):
    draw = [ROOT / 'tools/make_demo_data.py', tmp_path / 'data', '--num-train', 2, '--num-val', 1]
    assert '2 + 1 images written' in call(*draw).stdout
    assert 'are in' in call(*draw).stdout
    assert '3 + 1 images' in call(*draw[:3], 3, *draw[4:], returncode=2).stderr

    call('-m', 'mmdat.demo.untrained', CONFIG, tmp_path / 'untrained.pth')
    image = tmp_path / 'data/val2017/000000000003.jpg'
    out = ['--out-dir', tmp_path / 'out', '--device', 'cpu']
    call(ROOT / 'tools/visualize_key_points.py', CONFIG, tmp_path / 'untrained.pth', image, *out)
    assert cv2.imread(str(tmp_path / 'out' / image.name)).shape[1] > 2 * 640  # stages 3 and 4
