import re

import pytest
from conftest import ROOT
from helpers.goldens import REFERENCE, requires_reference

from mmdat.released import RELEASED, find_release


@requires_reference
def test_the_table_is_the_authors():
    """Each row of their tables: the share, the config and the figures."""
    text = (REFERENCE / 'CHECKPOINTS.md').read_text()
    rows = [line for line in text.splitlines() if 'TsinghuaCloud' in line]
    by_share = {release.share: release for release in RELEASED.values()}
    assert len(rows) == len(by_share) == len(RELEASED)
    for row in rows:
        release = by_share[re.search(r'tsinghua\.edu\.cn/f/(\w+)/', row)[1]]
        assert re.search(r'`configs/(?:dat/)?(\w+)\.\w+`', row)[1] == release.config
        figures = [float(cell) for cell in row.split('|') if re.fullmatch(r'\s*\d\d\.\d\s*', cell)]
        assert list(release.results.values()) == figures


def test_names_tell_the_generation():
    for release in RELEASED.values():
        assert release.generation == ('pp' if release.name.startswith('dat_pp_') else 'cvpr')


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('dat_base_in1k_384', 'dat_base_in1k_384'),
        ('cmrcn_base_3x_8n_dp08_lr4', 'dat_pp_base_cascade_mask_rcnn_3x'),
        ('dat_tiny', None),  # a config of both generations
    ],
)
def test_files_are_found_under_the_authors_names(name, found):
    release = find_release(name)
    assert (release and release.name) == found


def test_configs_name_released_files():
    text = ''.join(path.read_text() for path in (ROOT / 'configs').rglob('*.py'))
    names = set(re.findall(r'mmdat://([\w.]+)', text))
    assert names
    assert names <= set(RELEASED)
