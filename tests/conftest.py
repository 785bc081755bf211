import runpy
import sys
from pathlib import Path

import pytest
from helpers.instances import forget_instances
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmdat.checkpoint import trust_checkpoints
from mmdat.ops.deformable.backends import cpu

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / 'shared' / 'data'


SCHEMES = dict(CheckpointLoader._schemes)
LOADERS = {name: getattr(mmengine_checkpoint, name) for name in ('load_from_http', '_safe_torch_load')}


def pytest_addoption(parser):
    parser.addoption(
        '--full', action='store_true', help='repeat the experiments of tests/reliability as often as docs say'
    )


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own():
    """Undoes what tools change for the rest of a process, so that tests may come in any order."""
    yield
    CheckpointLoader._schemes = dict(SCHEMES)
    for name, loader in LOADERS.items():
        setattr(mmengine_checkpoint, name, loader)
    trust_checkpoints(False)
    forget_instances()


@pytest.fixture
def trials(request):
    """`trials(short, full)`: how often to repeat an experiment, in CI and with `--full`."""
    return lambda short, full: full if request.config.getoption('--full') else short


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


@pytest.fixture
def mask_rcnn_config() -> Config:
    return Config.fromfile(ROOT / 'configs/mask_rcnn/dat_t_1x_coco.py')


@pytest.fixture
def coco_root() -> Path:
    """A few real images of COCO, in its layout."""
    if not (DATA / 'coco').is_dir():
        pytest.skip(f'needs the sample of COCO in {DATA / "coco"}')
    return DATA / 'coco'


@pytest.fixture(params=['reference', 'portable', 'cpu'])
def backend(request) -> str:
    """Name of each backend of deformable attention that this machine has."""
    if request.param == 'cpu':
        kernel, obstacle = cpu.load()
        if kernel is None:
            pytest.skip(obstacle)
    return request.param
