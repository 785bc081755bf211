"""How the rooms of `mmdat` build on each other; `ops/test_layout.py` has those inside `mmdat.ops`."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import mmdat

PACKAGE = Path(mmdat.__file__).parent

# From bottom to top: a room imports from those in the lines above its own, and from itself.
LAYERS = [
    'errors spelling rules released version',
    'architectures',
    'checkpoint ops hub image_files quiet',
    'input_files',
    'layers',
    'backbones',
    'apis',
    'registry optim utils visualization analysis demo',
    'export',
    'benchmarks engine',
    'check',
]
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms.split()}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)


def room_of(path: Path) -> str:
    return path.parts[0].removesuffix('.py')


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in its text."""
    package = '.'.join(['mmdat', *path.parts[:-1]])
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            base = resolve_name('.' * node.level + (node.module or ''), package)
            names |= {f'{base}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split('.')[1] for name in names if name.startswith('mmdat.')}


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} - {'__init__'} == RANKS.keys()


@pytest.mark.parametrize('path', [path for path in FILES if room_of(path) in RANKS], ids=str)
def test_imports_run_one_way(path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert RANKS[other] < RANKS[room], f'{path} imports from {other}, which is not below {room}'


def test_architectures_need_no_pytorch():
    below = {room for room, rank in RANKS.items() if rank <= RANKS['architectures']}
    for path in FILES:
        if room_of(path) in below:
            assert 'torch' not in (PACKAGE / path).read_text().replace('PyTorch', ''), path
