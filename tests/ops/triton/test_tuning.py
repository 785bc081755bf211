"""The choice of tiles, with a clock that is not one."""

import pytest
import torch

from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.record import Record
from mmdat.ops.triton import tuning
from mmdat.ops.triton.tiles import KERNELS, Case, candidates, heads_at_once, use_default

CASE = Case((9, 0), torch.bfloat16, 32, (27, 27), 4, 'ieee')
TILES = candidates('forward', CASE)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'mmdat'


class Bench:
    """Where the tile `best` is the fastest, and those in `broken` raise."""

    def __init__(self, best, broken=(), may_measure=True):
        self.best, self.broken, self.tried = best, broken, []
        self.tuner = tuning.Tuner(Record('tiles'), self._seconds, lambda: may_measure)

    def _seconds(self, call):
        call()
        return 1.0 if self.tried[-1] == self.best else 2.0

    def _trial(self, tile):
        self.tried.append(tile)
        if tile in self.broken:
            raise RuntimeError('out of resource: shared memory')

    def pick(self, shape='4 queries'):
        return self.tuner.pick(shape, 'forward', CASE, self._trial)


def test_the_fastest_tile_is_measured_once_and_kept():
    bench = Bench(best=TILES[1])
    assert bench.pick() == bench.pick() == TILES[1]
    assert bench.tried == list(TILES)
    next_run = Bench(best=TILES[0])
    assert next_run.pick() == TILES[1]
    assert next_run.tried == [TILES[1]]  # whether it still works
    assert next_run.pick('16 queries') == TILES[0]


def test_broken_tiles_are_left_out():
    assert Bench(best=TILES[1], broken=TILES[1:2]).pick() == TILES[0]
    assert Bench(best=None, broken=TILES[:2]).pick() == TILES[2]


def test_a_kept_tile_that_no_longer_works_is_chosen_anew():
    assert Bench(best=TILES[1]).pick() == TILES[1]
    assert Bench(best=TILES[2], broken=[TILES[1]]).pick() == TILES[2]
    assert Bench(best=None).pick() == TILES[2]


def test_where_nothing_works_the_default_says_why():
    assert Bench(best=None, broken=TILES).pick() == TILES[0]
    assert (
        Bench(best=TILES[2]).pick() == TILES[2]
    )  # which may have been for want of memory, so nothing was kept


def test_the_default_where_nothing_may_be_measured(cache):
    bench = Bench(best=TILES[1], may_measure=False)
    assert bench.pick() == TILES[0]
    assert not bench.tried
    assert not cache.exists()


@pytest.mark.parametrize(
    ('setting', 'expected'),
    [('nothing', True), ('variable', False), ('deterministic', False), ('capture', False)],
)
def test_when_it_may_be_measured(setting, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: setting == 'capture')
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: setting == 'deterministic')
    monkeypatch.setenv('MMDAT_AUTOTUNE', '0' if setting == 'variable' else '')
    assert tuning.may_measure() == expected


@pytest.mark.parametrize('content', ['', '{"half', '[1]', '{"forward, 4 queries": "what"}', b'\xff\xfe'])
def test_a_broken_file_counts_as_empty(content, cache):
    cache.mkdir()
    path = cache / 'tiles.json'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert Bench(best=TILES[1]).pick() == TILES[1]
    assert Bench(best=None).pick() == TILES[1]


def test_a_tile_that_is_no_candidate_any_more_is_not_taken():
    Bench(best=TILES[1]).pick()
    record = Record('tiles')
    (key,) = record._read()
    record.put(key, [64, 64, 64, 32, 9, 4, 32, 4])
    assert Bench(best=TILES[2]).pick() == TILES[2]


def test_classes_of_shapes():
    def inputs(queries, keys, batch=1):
        rows = torch.zeros(batch, 2, queries, 1)
        return Inputs(rows, torch.zeros(batch, 2, keys, 1), *[None] * 3, (1, queries), 'corners')

    assert tuning.shape_class(inputs(49, 49)) == tuning.shape_class(inputs(64, 17))
    assert tuning.shape_class(inputs(1, 1)) == '1 queries, 1 keys, 4 heads'
    assert tuning.shape_class(inputs(65, 64, 3)) == '256 queries, 64 keys, 16 heads'
    assert tuning.shape_class(inputs(4**7, 4**7 + 1, 2**11)) == '16384 queries, 65536 keys, 4096 heads'


def test_heads_at_once():
    assert heads_at_once(torch.bfloat16, 32, 4) == heads_at_once(torch.float16, 16, 2) == 2
    for dtype, head_dims, heads in ((torch.float32, 32, 4), (torch.float16, 64, 4), (torch.float16, 32, 3)):
        assert heads_at_once(dtype, head_dims, heads) == 1


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('head_dims', [5, 16, 24, 32, 64, 96, 128])
@pytest.mark.parametrize('table_size', [(1, 1), (13, 13), (27, 27), (111, 111)])
def test_tiles_fit_the_kernels(head_dims, table_size, dtype):
    """What tensor cores and the layouts in `bias.py` ask for."""
    for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
        case = Case(capability, dtype, head_dims, table_size, heads_at_once(dtype, head_dims, 2), 'ieee')
        assert case.padded_head >= max(16, head_dims)
        assert head_dims % case.unit == 0
        for kernel in KERNELS:
            tiles = candidates(kernel, case)
            assert len(set(tiles)) == len(tiles) > 1
            assert use_default(kernel, case, None) == tiles[0]
            for tile in tiles:
                assert tile.columns in (8, 16)
                assert 16 <= tile.keys <= 128
                if kernel == 'keys':
                    assert tile.keys % 16 == tile.rows * tile.columns % 16 == 0
                elif kernel == 'table':
                    assert min(tile.columns, tile.chunk) >= 16
                    assert tile.rows % 8 == tile.keys % tile.warps == 0
                    assert tile.keys // tile.warps * tile.rows >= 16
                    assert tile.rows * tile.columns % (8 * tile.warps) == 0
                else:
                    assert tile.rows * tile.columns % (16 * tile.warps) == 0
