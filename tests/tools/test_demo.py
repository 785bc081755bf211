import subprocess
import sys

import cv2
from conftest import ROOT

CONFIG = ROOT / 'configs/demo/mask_rcnn_dat_narrow_shapes.py'


def test_from_data_to_picture(tmp_path, run_here):
    draw = ['make_demo_data.py', tmp_path / 'shapes', '--num-val', 1, '--num-train']
    assert '2 + 1 images written' in run_here(*draw, 2)[1]
    assert '2 + 1 images are in' in run_here(*draw, 2)[1]
    code, output = run_here(*draw, 3)
    assert code == 2
    assert '3 + 1 images' in output

    weights = tmp_path / 'untrained.pth'
    subprocess.run([sys.executable, '-m', 'mmdat.demo.untrained', CONFIG, weights], cwd=ROOT, check=True)
    image = tmp_path / 'shapes/val2017/000000000003.jpg'
    out = ['--out-dir', tmp_path / 'out', '--device', 'cpu']
    code, output = run_here('visualize_key_points.py', CONFIG, weights, image, *out)
    assert not code, output
    assert cv2.imread(str(tmp_path / 'out' / image.name)).shape[1] > 2 * 640  # stages 3 and 4
