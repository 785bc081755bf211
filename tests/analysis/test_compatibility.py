"""What `docs/compatibility.md` says is what comes out, and the trial notices what is wrong."""

import re

import pytest
import torch
from conftest import ROOT
from helpers.narrow import ARCH
from mmengine.registry import MODELS

from mmdat import DAT
from mmdat.analysis.compatibility import (
    MARK,
    NAMES,
    OWN,
    compatibility_row,
    read_rows,
    try_config,
    update_page,
)
from mmdat.errors import UserError

PAGE = ROOT / 'docs/compatibility.md'
NARROW = dict(type='mmdat.DAT', arch=ARCH)
SEGFORMER = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512'
UNET = 'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024'


@pytest.fixture(scope='module')
def rows():
    return read_rows(PAGE)


def test_page_has_every_config(rows):
    assert len(NAMES) == 68
    assert tuple(rows) == (*NAMES, *OWN)
    folders = {name.partition('::')[2].partition('/')[0] for name in OWN}
    files = [path for folder in folders for path in ROOT.glob(f'configs/{folder}/*.py')]
    assert {f'mmdat::{path.parent.name}/{path.stem}' for path in files} == set(OWN)


def test_counts_of_the_page(rows):
    works = sum(rows[name][3:6] == ('yes',) * 3 for name in NAMES)
    text = PAGE.read_text()
    assert f'**{works} of {len(NAMES)} stock configs**' in text.partition(MARK)[0]
    assert re.findall(r'^## .*: (\d+) of (\d+) work$', text, re.MULTILINE)[0] == (str(works), '68')


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
        'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512',
        'mmpretrain::convnext/convnext-tiny_32xb128_in1k',
    ],
)
def test_page_says_what_comes_out(name, rows):
    assert compatibility_row(name) == rows[name]


@pytest.mark.parametrize('name', ['mmdat::rtmdet/dat_pp_t_100e_coco', 'mmdat::segformer/dat_t_160k_ade20k'])
def test_own_configs_with_a_narrow_backbone(name, rows):
    generation = 'pp' if 'dat_pp' in name else 'cvpr'
    outcome = try_config(name, dict(NARROW, arch=dict(ARCH, embed_dims=32, generation=generation)))
    assert (outcome.failed, outcome.error) == (None, '')
    assert ', '.join(map(str, outcome.out_indices)) == rows[name][1]
    assert ', '.join(map(str, outcome.used)) == rows[name][2]


def test_backbone_with_five_maps():
    row = compatibility_row(UNET)
    error = 'ValueError: the backbone returns 5 maps, more than the 4 of DAT'
    assert row == (f'`{UNET}`', '', '', 'no', '', '', f'{error}; Swin-T fails alike')


@MODELS.register_module()
class DATWithNaNs(DAT):
    """Returns maps that are not numbers, in training or else in evaluation."""

    def __init__(self, broken_in_training: bool, **settings):
        super().__init__(**settings)
        self.broken_in_training = broken_in_training

    def forward(self, img):
        # not for the image that only tells the channels
        broken = torch.is_grad_enabled() if self.broken_in_training else img.std() > 0 and not self.training
        return tuple(out * float('nan') if broken else out for out in super().forward(img))


@pytest.mark.parametrize(
    ('settings', 'failed', 'error'),
    [
        (dict(frozen_stages=1), 'training step', 'no gradient reaches stage 0 of the backbone'),
        (dict(type='DATWithNaNs', broken_in_training=True), 'training step', 'the loss is nan'),
        (
            dict(type='DATWithNaNs', broken_in_training=False),
            'prediction',
            'predictions are not finite',
        ),
        (dict(window_size=0), 'builds', 'window_size'),
    ],
)
def test_notices_what_is_wrong(settings, failed, error):
    outcome = try_config(SEGFORMER, NARROW | settings)
    assert outcome.failed == failed
    assert error in outcome.error


@pytest.mark.parametrize(
    ('name', 'error'),
    [
        ('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512', "does not exist, did you mean 'mmseg::fcn/fcn_r50"),
        ('fcn_r50', "no library 'fcn_r50'; names are LIBRARY::FOLDER/NAME"),
        ('', "no library ''"),
    ],
)
def test_unknown_config(name, error):
    with pytest.raises(UserError, match=re.escape(error)):
        try_config(name)


def test_some_rows_of_a_page(tmp_path):
    page = tmp_path / 'page.md'
    with pytest.raises(FileNotFoundError):
        update_page(page, {})
    page.write_text('# Page\n')
    with pytest.raises(UserError, match='below which the tables go'):
        update_page(page, {})
    page.write_text(f'# Page\n{MARK}')
    works = ('0, 1', '1', 'yes', 'yes', 'yes')
    first = {name: (f'`{name}`', *works, '') for name in (NAMES[3], NAMES[0], OWN[1])}
    update_page(page, first)
    assert list(read_rows(page)) == [NAMES[0], NAMES[3], OWN[1]], 'in the order of the list'
    failed = (f'`{NAMES[3]}`', '3', '', 'no', '', '', r'x \| y')
    update_page(page, {NAMES[3]: failed})
    assert read_rows(page) == first | {NAMES[3]: failed}
    text = page.read_text()
    assert text.startswith(f'# Page\n{MARK}\nRun with torch {torch.__version__}, ')
    assert '\n## Stock configs: 1 of 68 work\n\n| config' in text
    assert "## mmdat's own configs: 1 of 8 work" in text
    update_page(page, {})
    assert page.read_text() == text
    with pytest.raises(UserError, match=f'takes the configs of its list only, not {UNET}'):
        update_page(page, {UNET: failed})
