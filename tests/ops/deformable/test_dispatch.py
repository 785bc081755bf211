"""Which backend serves, and what is said about it."""

import pytest
import torch

from mmdat.ops import deformable_attention, explain
from mmdat.ops.deformable import dispatch
from mmdat.ops.deformable.backends import cpu


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)


@pytest.fixture
def no_kernel(monkeypatch):
    monkeypatch.setattr(cpu, 'load', lambda: (None, 'there is no C++ compiler'))


@pytest.fixture
def with_kernel(monkeypatch):
    monkeypatch.setattr(cpu, 'load', lambda: (object(), 'vectors of 8 floats'))


def arguments(side: int, dtype=torch.float32, device='cpu', table=9) -> tuple:
    """`side x side` queries and keys of one head."""
    rows = torch.zeros(1, 1, side**2, 8, dtype=dtype, device=device)
    table = torch.zeros(1, table, table, dtype=dtype, device=device)
    return rows, rows, rows, table, torch.zeros(1, 1, side**2, 2, device=device), (side, side)


@pytest.mark.parametrize(
    ('side', 'settings', 'expected'),
    [
        (7, dict(), 'reference: nothing is faster for 2401 logits'),
        (20, dict(), 'cpu: it is the fastest for 160000 logits, with vectors of 8 floats'),
        (40, dict(dtype=torch.float64), 'portable: the kernel computes in float32, not in torch.float64'),
        (40, dict(table=4095), 'portable: a table (1, 4095, 4095)'),
        (40, dict(device='meta'), 'reference: tensors without numbers'),
    ],
)
def test_choice(side, settings, expected, with_kernel):
    assert explain(*arguments(side, **settings)).startswith(expected)
    assert (
        explain(*arguments(side, **settings), dropout=0.1)
        == 'reference: only this one drops attention weights'
    )


@pytest.mark.parametrize(('side', 'expected'), [(7, 'reference'), (20, 'reference'), (40, 'portable')])
def test_choice_without_a_compiler(side, expected, no_kernel):
    said = explain(*arguments(side))
    assert said.startswith(f'{expected}: ')
    assert ('no C++ compiler' in said) == (side > 7)


def test_argument_and_variable_choose(monkeypatch, with_kernel):
    assert explain(*arguments(3), backend='portable') == 'portable: asked for by the argument `backend`'
    monkeypatch.setenv('MMDAT_BACKEND', 'cpu')
    assert explain(*arguments(3)) == 'cpu: asked for by the variable MMDAT_BACKEND'
    assert explain(*arguments(3), backend='portable').startswith('portable: ')
    monkeypatch.setenv('MMDAT_BACKEND', '')
    assert explain(*arguments(3)).startswith('reference: ')


@pytest.mark.parametrize('backend', dispatch.BACKENDS)
def test_what_is_explained_is_what_runs(backend, monkeypatch):
    ran = []
    monkeypatch.setattr(dispatch, 'operator', lambda q, *args: ran.append(args[-1]) or (q, None))
    monkeypatch.setattr(cpu, 'load', lambda: (object(), ''))
    deformable_attention(*arguments(3), backend=backend)
    assert ran == ([] if backend == 'reference' else [backend])


@pytest.mark.parametrize('call', [explain, deformable_attention])
def test_bad_choices_are_named(call, monkeypatch, no_kernel):
    with pytest.raises(ValueError, match="unknown backend 'cuda' in the argument `backend`"):
        call(*arguments(3), backend='cuda')
    with pytest.raises(ValueError, match='asks for the cpu backend, but there is no'):
        call(*arguments(3), backend='cpu')
    with pytest.raises(ValueError, match=r'asks for the portable backend, but only .* dropout=0.1'):
        call(*arguments(3), dropout=0.1, backend='portable')
    monkeypatch.setenv('MMDAT_BACKEND', 'fast')
    with pytest.raises(ValueError, match="unknown backend 'fast' in the variable MMDAT_BACKEND"):
        call(*arguments(3))
