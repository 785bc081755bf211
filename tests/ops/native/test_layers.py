"""The MLP and attention in windows: what serves, what is said about it, and the operators."""

import pytest
import torch

from mmdat.ops import explain_mlp, explain_window_attention, mlp, window_attention
from mmdat.ops.native import mlp as mlp_module
from mmdat.ops.native import window_kernel, windows
from mmdat.ops.windows import shift_masks


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)
    monkeypatch.setattr(mlp_module, 'chunk_rows', lambda *weights: 25)


@pytest.fixture
def kernel(request, monkeypatch):
    """The kernel, or what is said where it cannot be had."""
    obstacle = getattr(request, 'param', '')
    monkeypatch.setattr(window_kernel, 'load', lambda: (None if obstacle else object(), obstacle))


def mlp_inputs(side=2, dtype=torch.float32, device='cpu'):
    shapes = [(1, side, side, 4), (8, 4), (8,), (4, 8), (4,)]
    return [torch.randn(shape, dtype=dtype, device=device) / 3 for shape in shapes]


def window_inputs(channels=32, dtype=torch.float32, device='cpu'):
    shapes = [
        (2, 5, 4, channels),
        (3 * channels, channels),
        (3 * channels,),
        (channels, channels),
        (channels,),
    ]
    inputs = [torch.randn(shape, dtype=dtype, device=device) / 3 for shape in (*shapes, (1, 9, 9))]
    return [*inputs, shift_masks(3, 2).to(device, dtype), 2]


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(side=20), 'portable: 400 positions'),
        (dict(side=20, dtype=torch.float64), 'portable: 400 positions'),
        (dict(side=20, device='meta'), 'reference: 400 positions, not portable: the map is on meta'),
        (dict(dtype=torch.bfloat16), 'reference: 4 positions, not portable: sums over chunks are rough'),
        (dict(), 'reference: 4 positions, not portable: pays from 100 positions on'),
    ],
)
def test_mlp(settings, expected):
    assert explain_mlp(*mlp_inputs(**settings)).startswith(expected)


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(), 'cpu: 40 positions'),
        (
            dict(dtype=torch.float64),
            'portable: 40 positions, not cpu: the kernel is for float32 and heads of 32 channels, not for '
            'torch.float64 and 32',
        ),
        (dict(channels=16), 'portable: 40 positions, not cpu: the kernel is for float32 and heads of 32'),
        (dict(device='meta'), 'reference: 40 positions, not cpu: the map is on meta'),
    ],
)
def test_windows(settings, expected, kernel):
    assert explain_window_attention(*window_inputs(**settings)).startswith(expected)


@pytest.mark.parametrize('kernel', ['there is no C++ compiler'], indirect=True)
def test_windows_without_a_compiler(kernel):
    assert explain_window_attention(*window_inputs()) == (
        'portable: 40 positions, not cpu: there is no C++ compiler'
    )


@pytest.mark.parametrize(
    ('variable', 'of_windows', 'of_mlp'),
    [
        ('reference', 'reference', 'reference'),
        ('portable', 'portable', 'portable'),
        ('cpu', 'cpu', 'portable'),
    ],
)
def test_the_variable_chooses_for_all(variable, of_windows, of_mlp, kernel, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', variable)
    assert explain_window_attention(*window_inputs()).startswith(f'{of_windows}: ')
    assert explain_mlp(*mlp_inputs(20)).startswith(f'{of_mlp}: ')
    if variable == 'reference':
        asked = 'reference: asked for by the variable MMDAT_BACKEND'
        assert explain_window_attention(*window_inputs()) == asked
        assert explain_mlp(*mlp_inputs(20)) == asked


@pytest.mark.parametrize('explain', [lambda: explain_mlp(*mlp_inputs()), lambda: mlp(*mlp_inputs())])
def test_an_unknown_name_is_an_error(explain, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', 'fast')
    with pytest.raises(ValueError, match="unknown backend 'fast' in the variable MMDAT_BACKEND"):
        explain()


def test_what_changes_operations_gets_the_formula(kernel):
    inputs = window_inputs()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert 'not cpu: autocast chooses the dtype' in explain_window_attention(*inputs)
    said = []
    torch.func.grad(lambda x: said.append(explain_window_attention(x, *inputs[1:])) or x.sum())(inputs[0])
    assert 'not cpu: torch.func transforms the single operations' in said[0]


OPERATORS = {
    'mlp': lambda: (mlp_module._operator, [*mlp_inputs(), 3]),
    'windows, portable': lambda: (windows._OPERATORS['portable'], [*window_inputs(), 18]),
    'windows, cpu': lambda: (windows._OPERATORS['cpu'], [*window_inputs(), 18]),
}


@pytest.mark.parametrize('name', OPERATORS)
def test_registration(name):
    if name == 'windows, cpu' and window_kernel.load()[0] is None:
        pytest.skip(window_kernel.load()[1])
    operator, arguments = OPERATORS[name]()
    for i, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor) and i < 6:
            argument.requires_grad_()
    torch.library.opcheck(operator, arguments, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', OPERATORS)
def test_operators_refuse_other_dtypes(name):
    operator, (x, *arguments) = OPERATORS[name]()
    with pytest.raises(ValueError, match=r'takes tensors of float32, or all of float64, got .*bfloat16'):
        operator(x.bfloat16(), *(a.bfloat16() if isinstance(a, torch.Tensor) else a for a in arguments))
    with pytest.raises(ValueError, match='takes tensors of float32, or all of float64'):
        operator(x.double(), *arguments)


def test_the_kernel_refuses_what_it_would_misread():
    """Double precision, and heads of another size."""
    if window_kernel.load()[0] is None:
        pytest.skip(window_kernel.load()[1])
    for inputs in (window_inputs(dtype=torch.float64), window_inputs(channels=16)):
        with pytest.raises(ValueError, match='a kernel needs'):
            windows._OPERATORS['cpu'](*inputs, 18)


@pytest.mark.parametrize('backend', windows._OPERATORS)
def test_bad_shapes_are_named(backend):
    *tensors, bias, masks, shift = window_inputs()
    operator = windows._OPERATORS[backend]
    for shape in ((1, 9, 4), (1, 8, 8)):
        with pytest.raises(ValueError, match=r'shape \(M, N, N\) for the N positions of a square, got'):
            operator(*tensors, torch.zeros(shape), None, shift, 18)
    with pytest.raises(ValueError, match=r'masks need shape \(4, 9, 9\), got \(3, 9, 9\)'):
        operator(*tensors, bias, masks[:3], shift, 18)


@pytest.mark.parametrize(('masked', 'shift'), [(True, 0), (False, 2)])
def test_masks_and_shift_do_not_depend_on_each_other(masked, shift):
    *tensors, masks, _ = window_inputs()
    inputs = *tensors, masks if masked else None, shift
    torch.testing.assert_close(window_attention(*inputs), windows._formula(*inputs), atol=1e-4, rtol=1e-4)


def test_autocast_does_not_lower_the_precision_inside_operators():
    operator, arguments = OPERATORS['mlp']()
    expected = operator(*arguments)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(operator(*arguments), expected, atol=0, rtol=0)


def test_functions_are_the_formula():
    x, w1, b1, w2, b2 = inputs = mlp_inputs()
    torch.testing.assert_close(mlp(*inputs), torch.nn.functional.gelu(x @ w1.T + b1) @ w2.T + b2)
    plain = windows._formula(*(inputs := window_inputs()))
    torch.testing.assert_close(window_attention(*inputs), plain, atol=1e-4, rtol=1e-4)
