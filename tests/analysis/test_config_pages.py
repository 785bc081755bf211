"""Each folder of configs has a page, whose table is that of its metafile."""

import shutil

import pytest
from conftest import ROOT

from mmdat.analysis.config_pages import config_table, update_page

FOLDERS = sorted(path.parent.name for path in ROOT.glob('configs/[!_]*/metafile.yml'))


@pytest.mark.parametrize('name', FOLDERS)
def test_page_is_up_to_date(name, tmp_path):
    for file in ('README.md', 'metafile.yml'):
        shutil.copy(ROOT / 'configs' / name / file, tmp_path)
    update_page(tmp_path / 'README.md')
    ours = (ROOT / 'configs' / name / 'README.md').read_text()
    assert (tmp_path / 'README.md').read_text() == ours, 'run tools/analysis/update_config_pages.py'


def test_table():
    lines = config_table(ROOT / 'configs/mask_rcnn/metafile.yml').splitlines()
    columns = lines[0].strip('| ').split(' | ')
    row = dict(zip(columns, lines[2].strip('| ').split(' | ')))
    assert row['config'] == '[dat_t_1x_coco](dat_t_1x_coco.py)'
    assert (row['FLOPs'], row['box AP75'], row['mask APl']) == ('272G', '48.5', '55.5')
    assert row['results'] == "the paper's"


def test_page_without_mark(tmp_path):
    (tmp_path / 'README.md').write_text('# Configs')
    with pytest.raises(ValueError, match='below which the table goes'):
        update_page(tmp_path / 'README.md')
