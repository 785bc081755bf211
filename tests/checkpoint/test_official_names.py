import pytest
import torch
from helpers.goldens import official_weights, read_golden

from mmdat.checkpoint import from_official


@pytest.mark.parametrize('name', ['cvpr_base_128w4', 'pp_base_128', 'pp_sra_128', 'det_base_128x192'])
def test_from_official_is_pure_and_complete(name):
    case, _ = read_golden(name)
    official = official_weights(case['keys'], case['offset_gain'])
    before = {key: value.clone() for key, value in official.items()}
    ours = from_official(official)
    assert official.keys() == before.keys()
    assert all(torch.equal(official[key], before[key]) for key in before)
    models = {'backbone', 'head'} if 'cls_head.weight' in official else {'backbone'}
    assert {key.partition('.')[0] for key in ours} == models
    derived = ('relative_position_index', 'attn_mask')
    assert len(ours) == sum(not key.endswith(derived) for key in official)
    learned = sum(v.numel() for k, v in official.items() if not k.endswith(derived))
    assert sum(value.numel() for value in ours.values()) == learned == case['n_params']


def test_from_official_names_keys_it_does_not_know():
    with pytest.raises(ValueError, match=r'stages\.0\.attns\.0\.proj_x\.weight'):
        from_official({'stages.0.attns.0.proj_x.weight': torch.zeros(1)})
