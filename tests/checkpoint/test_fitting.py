import torch
from helpers.goldens import dat_settings, make_input, official_weights, read_golden
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import fit, from_official, resize_bias_tables
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
