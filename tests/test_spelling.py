import pytest

from mmdat.spelling import count_mistakes, did_you_mean, find_slip


@pytest.mark.parametrize(
    ('a', 'b', 'mistakes'),
    [('', '', 0), ('', 'ab', 2), ('model', 'modle', 1), ('kitten', 'sitting', 3), ('wraper', 'wrapper', 1)],
)
def test_mistakes_are_counted(a, b, mistakes):
    assert count_mistakes(a, b) == count_mistakes(b, a) == mistakes


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('trian_cfg', 'train_cfg'),
        ('optim_wraper', 'optim_wrapper'),
        ('val_evalautors', 'val_evaluator'),
        ('train_cfg', None),  # it is the name
        ('test_pipeline', None),
        ('conv_cfg', None),
        ('dataset_type', None),
    ],
)
def test_slips(name, meant):
    known = ['train_cfg', 'env_cfg', 'optim_wrapper', 'val_evaluator', 'tta_pipeline']
    assert find_slip(name, known) == meant


def test_hint():
    assert did_you_mean('AdamWW', ['SGD', 'AdamW']) == ", did you mean 'AdamW'?"
    assert did_you_mean('zzz', ['SGD', 'AdamW']) == ''
