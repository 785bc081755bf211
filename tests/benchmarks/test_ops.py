import re

import pytest
import torch

from mmdat.benchmarks import ops as op_benchmark
from mmdat.benchmarks.ops import (
    GPU_SHAPES,
    SHAPES,
    Shape,
    benchmark_beside_sdpa,
    benchmark_ops,
    random_inputs,
)
from mmdat.benchmarks.timing import Timing

CPU = torch.device('cpu')
SMALL = Shape((6, 9), (3, 4), heads=4, groups=2, nominal_side=4, batch=2)


def fake_timings(contenders, repeats):
    """4 s for the first, 2 s for the second, and so on."""
    for call in contenders.values():
        call()
    return {name: Timing(4.0 / (1 + i), 0.5) for i, name in enumerate(contenders)}


def test_rows_and_ratios(monkeypatch):
    monkeypatch.setattr(op_benchmark, 'interleaved_timings', fake_timings)
    rows = re.findall(r'^\| (\d.*) \|$', benchmark_ops(['portable'], (SMALL,), 3), re.MULTILINE)
    cells = [row.split(' | ') for row in rows]
    assert [row[:6] for row in cells] == [
        ['6x9 x 12, 4, batch 2', 'reference', '4000.00 ± 500.00', '1.00', '4000.00 ± 500.00', '1.00'],
        ['6x9 x 12, 4, batch 2', 'portable', '2000.00 ± 500.00', '2.00', '2000.00 ± 500.00', '2.00'],
    ]
    assert all(row[6].endswith(' MiB') for row in cells)


@pytest.mark.parametrize('shapes', [SHAPES, GPU_SHAPES])
def test_names_tell_shapes_apart(shapes):
    assert len({str(shape) for shape in shapes}) == len(shapes)


def tables(text):
    """Cells of the tables, row by row, without heads."""
    blocks = re.findall(r'(?:^\|.*\|$\n?)+', text, re.MULTILINE)
    return [[line[2:-2].split(' | ') for line in block.splitlines()[2:]] for block in blocks]


@pytest.fixture
def fake_times(monkeypatch):
    monkeypatch.setattr(op_benchmark, 'timings_on', lambda device: fake_timings)
    monkeypatch.setattr(op_benchmark, 'peak_memory', lambda function, device: 3 * 2**20)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_errors_then_times_beside_sdpa(dtype, fake_times):
    text = benchmark_beside_sdpa(['portable'], [SMALL], CPU, dtype, repeats=2, compiled=False)
    ((errors,), rows) = tables(text)
    assert errors[:2] == ['6x9 x 12, 4, batch 2', 'portable']
    assert errors[-1] == 'right'
    assert (
        max(map(float, errors[2:8]))
        < float(errors[8])
        == pytest.approx(1e-4 if dtype == torch.float32 else 0.0625, rel=0.02)
    )
    assert [row[1] for row in rows] == ['reference', 'SDPA, no bias', 'SDPA, bias given', 'portable']
    assert rows[3][2:5] == rows[3][5:8] == ['1000.00 ± 500.00', '4.00', '0.50']
    assert rows[0][3:5] == ['1.00', '2.00']
    assert rows[0][-1] == '3 MiB'


def test_wrong_backends_are_not_timed_and_broken_ones_stop_nobody(fake_times, monkeypatch):
    attend = op_benchmark.deformable_attention

    def wrong(*args, backend):
        return attend(*args, backend=backend) * (1.01 if backend == 'portable' else 1)

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError('CUDA out of memory | a lot')

    monkeypatch.setattr(op_benchmark.F, 'scaled_dot_product_attention', out_of_memory)

    def broken(*args, backend):
        if backend == 'cpu':
            raise ValueError('it cannot\nserve')
        return wrong(*args, backend=backend)

    monkeypatch.setattr(op_benchmark, 'deformable_attention', broken)
    text = benchmark_beside_sdpa(
        ['portable', 'cpu', 'reference'], [SMALL], CPU, torch.float32, 2, compiled=False
    )
    errors, rows = tables(text)
    assert [row[-1] for row in errors] == ['WRONG', 'ValueError: it cannot', 'right']
    assert {len(row) for row in errors} == {10}
    assert [row[1:3] for row in rows][1:] == [
        ['SDPA, no bias', 'out of memory'],
        ['SDPA, bias given', 'out of memory'],
    ]
    assert rows[0][2:5] == ['4000.00 ± 500.00', '1.00', 'nan']


def test_inputs_are_on_the_device_that_is_asked_for():
    inputs = random_inputs(SMALL, torch.device('meta'), torch.float16)
    assert {t.device.type for t in inputs} == {'meta'}
    assert [t.dtype for t in inputs] == [torch.float16] * 3 + [torch.float32] * 2
    assert all(t.device.type == 'cpu' and t.dtype == torch.float32 for t in random_inputs(SMALL, CPU))
