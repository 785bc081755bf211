import re

import pytest
import torch

from mmdat.benchmarks.backbones import CASES, SWINS, Case, benchmark_backbones, build_dat, multiply_adds

SMALL = Case('small', (1, 3, 64, 96))


@pytest.mark.slow
def test_table_and_profile(monkeypatch):
    monkeypatch.setitem(SWINS, 'not_a_library', None)
    text = benchmark_backbones([SMALL, Case('classifier', (2, 3, 64, 64), dense=False)], 2, profile=True)
    assert 'Not installed, so left out: not_a_library' in text or 'timm, not_a_library' in text
    assert text.count('| DAT-T |') == text.count('| Swin-T (mmdet) |') == 2
    for profile in text.split('| part |')[1:]:
        shares = [int(share) for share in re.findall(r'(-?\d+)%', profile.partition('\n\n')[0])]
        assert len(shares) == 10
        assert abs(sum(shares) - 200) <= 10  # rounded


@pytest.mark.parametrize('dense', [True, False])
def test_contenders_give_the_same_shapes(dense):
    case = Case('small', (2, 3, 64, 96), dense)
    image = torch.randn(case.shape)
    shapes = {'DAT': [x.shape for x in _outputs(build_dat(case), image)]}
    for name in ('mmdet', 'torchvision'):
        shapes[name] = [x.shape for x in _outputs(SWINS[name](case), image)]
    assert len(set(map(str, shapes.values()))) == 1, shapes
    assert len(shapes['DAT']) == (4 if dense else 1)


def _outputs(model: torch.nn.Module, image: torch.Tensor) -> tuple:
    outs = model(image)
    return (outs,) if isinstance(outs, torch.Tensor) else tuple(outs)


def test_multiply_adds_are_the_papers():
    assert round(multiply_adds(CASES[0]) / CASES[0].shape[0] / 1e9, 2) == 4.59
