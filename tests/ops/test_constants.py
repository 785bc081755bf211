"""Tensors of sizes are made once, and are right wherever they are asked for next."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from mmdat.layers import DeformableAttention
from mmdat.ops.constants import keep

CPU = torch.device('cpu')


class Watcher(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def steps():
    calls = []

    @keep(results=3)
    def steps(size, device):
        calls.append(size)
        return torch.arange(size, device=device) / 2

    steps.calls = calls
    return steps


def test_is_made_once_for_each_size(steps):
    assert steps(4, CPU) is steps(4, CPU)
    assert steps(5, CPU).tolist() == [0, 0.5, 1, 1.5, 2]
    assert steps.calls == [4, 5]


def test_few_are_kept(steps):
    for size in (1, 2, 3, 4, 1):
        steps(size, CPU)
    assert steps.calls == [1, 2, 3, 4, 1]
    assert steps.cache_info().currsize == 3


def test_what_inference_made_can_train(steps):
    with torch.inference_mode():
        assert not steps(4, CPU).is_inference()
    x = torch.ones(4, requires_grad=True)
    (x * steps(4, CPU)).sum().backward()
    assert x.grad.tolist() == [0, 0.5, 1, 1.5]


def test_fake_tensors_stay_in_their_mode(steps):
    real = steps(4, CPU)
    with FakeTensorMode():
        fake = steps(4, CPU)
        assert isinstance(fake, FakeTensor)
        assert steps(4, CPU) is fake
        with Watcher():
            assert steps(4, CPU) is fake
    with FakeTensorMode() as other:
        assert steps(4, CPU).fake_mode is other
    assert steps(4, CPU) is real


@pytest.mark.parametrize(
    'place',
    [
        lambda function: torch.func.grad(lambda x: x * function().sum())(torch.ones(())),
        lambda function: torch.jit.trace(lambda x: x + function(), torch.ones(4), check_trace=False),
        lambda function: torch.compile(lambda x: x + function(), backend='eager')(torch.ones(4)),
        lambda function: make_fx(lambda x: x + function(), tracing_mode='fake')(torch.ones(4)),
    ],
    ids=['torch.func', 'trace', 'compile', 'make_fx'],
)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_nothing_is_kept_of_what_is_recorded_or_transformed(place, steps):
    place(lambda: steps(4, CPU))
    assert steps.cache_info().currsize == 0


def test_nothing_is_kept_of_symbols_and_under_other_modes(steps):
    with FakeTensorMode(shape_env=ShapeEnv()):
        steps(4, CPU)
    with Watcher():
        steps(4, CPU)
    assert steps.cache_info().currsize == 0
    assert type(steps(4, CPU)) is torch.Tensor


def test_layers_that_share_grids_are_copied_and_run_in_threads():
    layer = DeformableAttention(16, 4, 2, map_size=(8, 8))
    x = torch.randn(6, 1, 9, 7, 16)
    expected = torch.stack([layer(x_i) for x_i in x])
    with ThreadPoolExecutor(3) as pool:
        torch.testing.assert_close(torch.stack(list(pool.map(layer, x))), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(x[0]), expected[0])
