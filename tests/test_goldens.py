import importlib.util

import pytest
import torch
from helpers.goldens import REFERENCE, make_input, official_weights, read_golden, requires_reference


@requires_reference
@pytest.mark.parametrize('name', ['cvpr_base_128w4', 'cvpr_pe_fixed_128', 'pp_base_128', 'seg_base_160x160'])
def test_weights_and_images_are_filled_by_the_rule_of_the_goldens(name):
    spec = importlib.util.spec_from_file_location('fill_rule', REFERENCE / 'fill_rule.py')
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    case, _ = read_golden(name)
    keys = case['keys']
    expected = rule.fill(
        {k: torch.zeros(s, dtype=torch.float64) for k, s in keys.items()}, case['offset_gain']
    )
    ours = official_weights(keys, case['offset_gain'])
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, atol=0, rtol=1e-15, msg=key)
    image = case['input_seed'], case['input_shape']
    assert make_input(*image).equal(rule.make_input(*image))
