import json

import pytest

from mmdat.demo.report import read_metrics, table


def test_latest_test_counts(tmp_path):
    for stamp, ap in (('20220619_120000', 0.1), ('20220620_090000', 0.4)):
        (tmp_path / stamp / 'vis_data').mkdir(parents=True)
        (tmp_path / stamp / 'vis_data' / 'scalars.json').write_text('')
        metrics = {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': 0.7, 'time': 1.0}
        (tmp_path / stamp / f'{stamp}.json').write_text(json.dumps(metrics))
    # the model has no detection with a mask, so CocoMetric has no value
    assert read_metrics(tmp_path) == {'box AP': 0.4, 'box AP50': 0.7, 'mask AP': 0, 'mask AP50': 0}


def test_no_test_was_run(tmp_path):
    with pytest.raises(FileNotFoundError, match='no metrics'):
        read_metrics(tmp_path)


def test_table():
    metrics = {'box AP': 0.4, 'box AP50': 0.7, 'mask AP': 0.5, 'mask AP50': 0.8}
    header, row = table({'after': metrics}).splitlines()
    assert header.split() == ['box', 'AP', 'box', 'AP50', 'mask', 'AP', 'mask', 'AP50']
    assert row.split() == ['after', '0.400', '0.700', '0.500', '0.800']
    assert len(header) == len(row)
