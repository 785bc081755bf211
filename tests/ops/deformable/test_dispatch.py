"""Which backend serves, and what is said about it."""

import pytest
import torch

from mmdat.ops import deformable_attention, explain
from mmdat.ops.deformable import dispatch
from mmdat.ops.deformable.backends import cpu
from mmdat.ops.deformable.operator import OPERATORS, Operators


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)


@pytest.fixture
def no_kernel(monkeypatch):
    monkeypatch.setattr(cpu, 'load', lambda: (None, 'there is no C++ compiler'))


@pytest.fixture
def with_kernel(monkeypatch):
    monkeypatch.setattr(cpu, 'load', lambda: (object(), ''))


def arguments(side: int, dtype=torch.float32, device='cpu', table=9) -> tuple:
    """`side x side` queries and keys of one head."""
    rows = torch.zeros(1, 1, side**2, 8, dtype=dtype, device=device)
    table = torch.zeros(1, table, table, dtype=dtype, device=device)
    return rows, rows, rows, table, torch.zeros(1, 1, side**2, 2, device=device), (side, side)


@pytest.mark.parametrize(
    ('side', 'settings', 'expected'),
    [
        (1, dict(), 'cpu: 1 logits'),
        (20, dict(), 'cpu: 160000 logits'),
        (20, dict(dtype=torch.bfloat16), 'cpu: 160000 logits'),
        (
            20,
            dict(dtype=torch.float64),
            'reference: 160000 logits, not cpu: the kernel computes in float32, not in torch.float64, '
            'not portable: pays from 700000 logits on',
        ),
        (40, dict(dtype=torch.float64), 'portable: 2560000 logits, not cpu: the kernel computes in float32'),
        (40, dict(table=4095), 'portable: 2560000 logits, not cpu: a table (1, 4095, 4095)'),
        (40, dict(device='meta'), 'reference: 2560000 logits'),
    ],
)
def test_choice(side, settings, expected, with_kernel):
    assert explain(*arguments(side, **settings)).startswith(expected)


@pytest.mark.parametrize(('side', 'expected'), [(7, 'reference'), (20, 'reference'), (40, 'portable')])
def test_choice_without_a_compiler(side, expected, no_kernel):
    said = explain(*arguments(side))
    assert said.startswith(f'{expected}: ')
    assert 'not cpu: there is no C++ compiler' in said


def test_argument_and_variable_choose(monkeypatch, with_kernel):
    assert explain(*arguments(3), backend='portable') == 'portable: asked for by the argument `backend`'
    monkeypatch.setenv('MMDAT_BACKEND', 'reference')
    assert explain(*arguments(3)) == 'reference: asked for by the variable MMDAT_BACKEND'
    assert explain(*arguments(3), backend='portable').startswith('portable: ')
    monkeypatch.setenv('MMDAT_BACKEND', '')
    assert explain(*arguments(3)).startswith('cpu: ')


def test_transforms_of_torch_func_get_the_equations(with_kernel):
    said = []

    def function(q):
        _, *others = arguments(20)
        said.append(explain(q, *others))
        return q.sum()

    torch.func.grad(function)(arguments(20)[0])
    assert said == ['reference: torch.func transforms the single operations']


@pytest.mark.parametrize('backend', ['reference', 'portable', 'cpu'])
def test_what_is_explained_is_what_runs(backend, monkeypatch, with_kernel):
    ran = []
    for name in OPERATORS:

        def forward(q, *args, name=name):
            return ran.append(name) or (q, None)

        monkeypatch.setitem(dispatch.OPERATORS, name, Operators(forward, None))
    deformable_attention(*arguments(3), backend=backend)
    assert ran == ([] if backend == 'reference' else [backend])


@pytest.mark.parametrize('call', [explain, deformable_attention])
def test_bad_choices_are_named(call, monkeypatch, no_kernel):
    with pytest.raises(ValueError, match="unknown backend 'cuda' in the argument `backend`"):
        call(*arguments(3), backend='cuda')
    with pytest.raises(ValueError, match='asks for the cpu backend, but there is no'):
        call(*arguments(3), backend='cpu')
    monkeypatch.setenv('MMDAT_BACKEND', 'fast')
    with pytest.raises(ValueError, match="unknown backend 'fast' in the variable MMDAT_BACKEND"):
        call(*arguments(3))
