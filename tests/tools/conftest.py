import cv2
import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with data."""
    rng = np.random.default_rng(0)
    for name in 'abcdefghij':
        (tmp_path / 'data' / name).mkdir(parents=True)
    for name in 'ab':
        picture = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'data' / name / '0.png'), picture)
    (tmp_path / 'files').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    return tmp_path
