"""The border between Python and C++: structs, addresses and exceptions."""

import ctypes

import pytest
import torch

from mmdat.ops.deformable.backends import cpu
from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.native import build, window_kernel
from mmdat.ops.native.library import Kernel, address, load_kernel


@pytest.fixture(params=[cpu, window_kernel])
def module(request):
    try:
        build.load_library('deformable_attention')
    except build.BuildError as error:
        pytest.skip(str(error))
    return request.param


def test_where_kernels_compile_they_load(module):
    """Or the tests of the kernels would be skipped in silence."""
    kernel, obstacle = module.load()
    assert isinstance(kernel, Kernel), obstacle
    assert kernel.lanes in (4, 8, 16)


def test_a_struct_that_is_not_as_large_as_its_mirror_is_not_used(module):
    class Short(ctypes.Structure):
        _fields_ = module._Arguments._fields_[:-1]

    name = 'deformable_attention' if module is cpu else 'window_attention'
    kernel, obstacle = load_kernel(name, Short)
    assert kernel is None
    sizes = ctypes.sizeof(module._Arguments), ctypes.sizeof(Short)
    assert '{} bytes in C++ but {} in Python: delete '.format(*sizes) in obstacle


def test_an_allocation_that_fails_in_a_thread_is_an_exception_in_python(module):
    """With sizes that no address space holds, and refused before anything is read."""
    if module is cpu:
        keys = 2**20
        rows = torch.zeros(1, 1, keys, 1)
        inputs = Inputs(
            rows, rows, rows, torch.zeros(1, 3, 3), torch.zeros(1, 1, keys, 2), (1, keys), 'corners'
        )
        arguments = cpu._arguments(inputs, rows, rows[..., 0])
        arguments.height, arguments.width, arguments.head_dims = 1, 4, 2**31 - 64
        names = 'mmdat_deformable_attention', 'mmdat_deformable_attention_backward'
        arguments.splits = 1
    else:
        arguments = window_kernel._Arguments(windows=1, heads=1, area=2**31 - 64, stride=2**31 - 64)
        names = 'mmdat_window_attention', 'mmdat_window_attention_backward'
    for threads in (1, 3):
        arguments.threads = threads
        for name in names:
            with pytest.raises(RuntimeError, match=f'^{name}: (there is not enough memory|.*vector)'):
                module.load()[0].call(name, arguments)


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (torch.zeros(2, 3, dtype=torch.float64), r'needs torch.float32 \(2, 3\) on cpu, got torch.float64'),
        (torch.zeros(3, 2), r'got torch.float32 \(3, 2\)'),
        (torch.zeros(2, 3, device='meta'), 'on meta'),
        (torch.zeros(3, 2).t(), r'contiguous tensor, got strides \(1, 2\)'),
    ],
)
def test_what_a_kernel_would_misread_is_named(x, message):
    with pytest.raises(ValueError, match=message):
        address(x, (2, 3))
