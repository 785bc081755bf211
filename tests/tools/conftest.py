import runpy
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT


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


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a tool in this process, because to start one takes seconds; gives the exit code and the output."""

    def run_here(tool: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools' / tool), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.err + captured.out

    return run_here
