"""The default kernels, compiled for cards that are not here; nothing runs."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('triton')

from mmdat.analysis.gpu_kernels import (
    SAMPLING_CASES,
    SHARED_MEMORY,
    _parsed,
    compile_case,
    compile_launch,
    default_cases,
    description,
    versions,
)
from mmdat.ops.triton import sampling
from mmdat.ops.triton.backward import table_kernel
from mmdat.ops.triton.launch import launches
from mmdat.ops.triton.tiles import Case

PAGE = Path(__file__).parents[2] / 'docs/gpu_kernels.md'


@pytest.mark.parametrize('capability', [(8, 0), (9, 0), (12, 0)], ids=str)
def test_default_kernels(capability):
    """No spills, and few instructions for 32 pairs; as the page says, if it is of this compiler."""
    case = default_cases(capability)[0]
    kernels = list(compile_case(case))
    for kernel in kernels:
        assert kernel.spilled == (0, 0), kernel.name
        assert kernel.shared_memory <= SHARED_MEMORY[capability] * 1024, kernel.name
    hot = {kernel.name: kernel for kernel in kernels if kernel.instructions}
    assert hot.keys() == {'forward', 'keys', 'queries', 'table'}
    assert hot['forward'].total <= 17
    assert hot['keys'].total <= 30
    assert hot['queries'].total + hot['table'].total <= 40
    for kernel in hot.values():
        assert kernel.instructions['exponential'] >= 1  # the whole loop was found
        assert kernel.instructions['tensor cores'] > 0

    page = PAGE.read_text()
    if versions() in page:
        card = 'sm_{}{}'.format(*capability)
        for kernel in hot.values():
            start = f'| {card} | {kernel.name} | {description(case)} |'
            (row,) = [row for row in page.splitlines() if row.startswith(start)]
            assert f'| {kernel.registers} | 0 / 0 |' in row
            assert f'| {kernel.total:.1f} |' in row


@pytest.mark.parametrize('capability', [(8, 0), (9, 0)], ids=str)
def test_sampling(capability):
    """No spills, no atomic additions, sums by tensor cores; as the page says, if it is of this compiler."""
    kernels = [compile_launch(launch, capability) for launch in sampling.launches(SAMPLING_CASES[0])]
    assert [kernel.name for kernel in kernels] == ['sample', 'locations', 'features']
    for kernel in kernels:
        assert kernel.spilled == (0, 0), kernel.name
        assert not {'RED', 'REDG', 'ATOM', 'ATOMG'} & kernel.opcodes.keys(), kernel.name
    assert {'HMMA', 'HGMMA'} & kernels[-1].opcodes.keys()
    if versions() in (page := PAGE.read_text()):
        for kernel in kernels:
            row = f'| sm_{capability[0]}{capability[1]} | {kernel.name} | float32 | bfloat16 | 128 |'
            assert f'{row} {kernel.registers} | 0 / 0 |' in page


def test_the_largest_of_float32_neither_spills_nor_exceeds_shared_memory():
    capability = 8, 0
    case = Case(capability, torch.float32, 128, (111, 111), 1, 'ieee')
    (launch,) = (one for one in launches(case) if one.kernel is table_kernel)
    compiled = compile_launch(launch, capability)
    assert compiled.spilled == (0, 0)
    assert compiled.shared_memory <= SHARED_MEMORY[capability] * 1024


def test_loops_are_found():
    text = """
.L_x_1:
        /*0000*/                   FADD R1, R2, R3 ;
.L_x_2:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R4, R6, R4 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/              @P1  BRA `(.L_x_1) ;
        /*0040*/                   EXIT ;
"""
    instructions, loops = _parsed(text)
    assert instructions == ['FADD', 'HMMA', 'BRA', 'BRA', 'EXIT']
    assert loops == [(1, 3)]
