"""How the modules of `mmdat.ops` build on each other."""

import ast
import importlib.util
import pkgutil
from functools import reduce
from pathlib import Path

import mmdat.ops

# From bottom to top: a module imports what stands in the lines above its own.
LAYERS = [
    'ladder dense sizes constants memory',
    'fused.kernel',
    'fused.attention fused.groups',
    'fused.tiles neighborhood windows',
    'fused.neighborhood fused.windows',
    'native.build',
    'native.library native.operators native.chunks record',
    'native.window_kernel',
    'native.mlp native.windows',
    'deformable.coordinates',
    'deformable.inputs deformable.reference deformable.gathers deformable.tents',
    'deformable.batched',
    'triton.tiles triton.bias triton.card',
    'triton.forward triton.tuning',
    'triton.backward',
    'triton.launch',
    'triton.sampling deformable.comparison',
    'deformable.backends.base',
    'triton.self_check',
    'deformable.backends.portable deformable.backends.cpu deformable.backends.triton',
    'deformable.backends',
    'deformable.operator',
    'deformable.dispatch deformable.sampling',
    'deformable native fused triton',
    'flops',
    '',  # mmdat.ops itself
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names.split(' ')}


def modules() -> list[str]:
    """All of `mmdat.ops`, by their names below it."""
    found = pkgutil.walk_packages(mmdat.ops.__path__, 'mmdat.ops.')
    return ['', *(module.name.removeprefix('mmdat.ops.') for module in found)]


def imported(name: str) -> set[str]:
    """The modules of `mmdat` that a module imports, by their full names, wherever in its text."""
    # without importing it, because some need Triton, which is not on every machine
    module = importlib.util.find_spec(f'mmdat.ops.{name}' if name else 'mmdat.ops')
    found = set()
    for node in ast.walk(ast.parse(Path(module.origin).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = importlib.util.resolve_name('.' * node.level + (node.module or ''), module.parent)
            below = {f'{base}.{alias.name}' for alias in node.names}
            found |= {full for full in below if full.removeprefix('mmdat.ops.') in RANKS} or {base}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith('mmdat'):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith('mmdat')}
    return found


def test_imports_run_one_way():
    assert set(modules()) == RANKS.keys()
    for name in modules():
        for full in imported(name):
            assert full.startswith('mmdat.ops'), f'{name or "mmdat.ops"} imports {full}'
            below = full.removeprefix('mmdat.ops').removeprefix('.')
            assert RANKS[below] < RANKS[name], f'{name} imports {below}, which does not stand above it here'


def test_no_function_shadows_a_module():
    for name in modules():
        full = f'mmdat.ops.{name}' if name else 'mmdat.ops'
        if name.startswith('triton.') and importlib.util.find_spec('triton') is None:
            continue
        module = importlib.import_module(full)
        assert reduce(getattr, full.split('.')[1:], mmdat) is module
