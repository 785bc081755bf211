import pytest
import torch
from helpers.goldens import dat_settings, make_input, official_weights, read_golden
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError, ClassWeights, fit, from_official, resize_bias_tables
from mmdat.checkpoint.contents import Weights


def test_resized_tables_equal_the_authors_code():
    case, golden = read_golden('cvpr_resize_128to192')
    base, _ = read_golden('cvpr_base_128w4')
    weights = from_official(official_weights(base['keys'], case['offset_gain']))
    target = DAT(**dat_settings(case['target']), out_indices=(3,)).double()
    head = nn.Linear(*weights['head.fc.weight'].T.shape).double()
    model = nn.ModuleDict({'backbone': target, 'head': nn.ModuleDict({'fc': head})}).eval()
    fitted, report = fit(Weights('dat.pth', weights), model.state_dict())
    report.check()
    tables = {key: value for key, value in golden.items() if key.endswith('_table')}
    assert len(report.resized) == len(tables) == 10
    for key, expected in from_official(tables).items():
        torch.testing.assert_close(fitted[key], expected, atol=1e-9, rtol=0, msg=key)

    model.load_state_dict(fitted)
    x = make_input(case['input_seed'], case['input_shape'])
    logits = head(target(x)[-1].mean((2, 3)))
    torch.testing.assert_close(logits, golden['logits'], atol=1e-9, rtol=0)


def test_tables_that_are_not_of_another_size_only_are_left_alone():
    table, windows = torch.randn(4, 7, 7), torch.randn(49, 4)
    for other, target in (
        (table, torch.zeros(5, 9, 9)),  # heads
        (windows, torch.zeros(81, 5)),
        (torch.randn(50, 4), torch.zeros(81, 4)),  # not a square
        (table, torch.zeros(81, 4)),
    ):
        key = 'attn.position_bias_table'
        resized, report = resize_bias_tables({key: other}, {key: target})
        assert resized[key] is other
        assert not report


def test_half_precision_is_resized():
    key, table = 'position_bias_table', torch.randn(2, 7, 7)
    resized, _ = resize_bias_tables({key: table.half()}, {key: torch.zeros(2, 9, 9)})
    expected, _ = resize_bias_tables({key: table}, {key: torch.zeros(2, 9, 9)})
    assert resized[key].dtype == torch.float16
    torch.testing.assert_close(resized[key].float(), expected[key], atol=2e-3, rtol=2e-3)


# A detector of 3 classes, its background apart: how many rows each class has, and the weights.
CLASSES = ClassWeights(3, {'cls.weight': 1, 'cls.bias': 1, 'boxes.weight': 4})
SHAPES = {'cls.weight': (4, 5), 'cls.bias': (4,), 'boxes.weight': (12, 5), 'neck.bias': (5,)}
OF_80 = SHAPES | {'cls.weight': (81, 5), 'cls.bias': (81,), 'boxes.weight': (320, 5)}


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_weights_of_other_classes_are_left_as_initialised():
    target, given = weights(SHAPES), weights(OF_80)
    fitted, report = fit(Weights('dat.pth', given), target, classes=CLASSES)
    report.check()
    for key in SHAPES:
        assert fitted[key] is (given if key == 'neck.bias' else target)[key], key
    assert report.loaded == 1
    told = 'of 80 classes instead of 3: cls.weight, cls.bias, boxes.weight'
    assert f'dropped, {told}' in str(report)
    assert f'left as initialised, {told}' in str(report)


def test_weights_of_the_same_number_of_classes_are_loaded():
    given = weights(SHAPES)
    fitted, report = fit(Weights('dat.pth', given), weights(SHAPES), classes=CLASSES)
    report.check()
    assert fitted == given
    assert 'left as initialised' not in str(report)


@pytest.mark.parametrize(
    'shapes',
    [
        {'cls.weight': (81, 6)},  # of another width, too
        {'cls.bias': (11,)},  # of a third number of classes
        {'boxes.weight': (321, 5)},  # of no whole number of classes
        {'neck.bias': (80,)},  # has nothing to do with classes
    ],
)
def test_other_differences_are_errors(shapes):
    given = Weights('dat.pth', weights(OF_80 | shapes))
    _, report = fit(given, weights(SHAPES), classes=CLASSES)
    with pytest.raises(CheckpointError, match=f'of another shape: .*{next(iter(shapes))}'):
        report.check()
