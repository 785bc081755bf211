import pytest
from mmengine.config import Config

from mmdat.engine import PreflightError
from mmdat.engine.distributed import processes


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ('no checkpoint', 'process 1 would start from no checkpoint, and process 0 from epoch_3.pth'),
        ('epoch_2.pth', 'process 1 would start from epoch_2.pth, and process 0 from epoch_3.pth'),
        ('epoch_3.pth', None),
    ],
)
def test_processes_that_start_from_different_checkpoints(other, message, monkeypatch):
    """As on nodes whose work directories are not the same."""
    monkeypatch.setattr(processes, 'all_gather_object', lambda own: [own, other])
    cfg = Config(dict(load_from='work/epoch_3.pth', work_dir='work'))
    if message is None:
        processes.check_start(cfg)
    else:
        with pytest.raises(PreflightError, match=message):
            processes.check_start(cfg)
