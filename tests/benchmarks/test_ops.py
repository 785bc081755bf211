import re

import pytest

from mmdat.benchmarks import ops as op_benchmark
from mmdat.benchmarks.ops import SHAPES, Shape, benchmark_ops
from mmdat.benchmarks.timing import Timing

SMALL = Shape((6, 9), (3, 4), heads=4, groups=2, nominal_side=4, batch=2)


def test_rows_and_ratios(monkeypatch):
    def timings(contenders, repeats):
        for call in contenders.values():
            call()
        return {name: Timing(4.0 / (1 + i), 0.5) for i, name in enumerate(contenders)}

    monkeypatch.setattr(op_benchmark, 'interleaved_timings', timings)
    rows = re.findall(r'^\| (\d.*) \|$', benchmark_ops(['portable'], (SMALL,), 3), re.MULTILINE)
    cells = [row.split(' | ') for row in rows]
    assert [row[:6] for row in cells] == [
        ['6x9 x 12, 4, batch 2', 'reference', '4000.00 ± 500.00', '1.00', '4000.00 ± 500.00', '1.00'],
        ['6x9 x 12, 4, batch 2', 'portable', '2000.00 ± 500.00', '2.00', '2000.00 ± 500.00', '2.00'],
    ]
    assert all(row[6].endswith(' MiB') for row in cells)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_names_tell_shapes_apart(shape):
    assert [str(other) for other in SHAPES].count(str(shape)) == 1
