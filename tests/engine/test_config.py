from mmdat.engine import load_config, resume

CONFIG = """
data_root = 'data/coco/'
train_dataloader = dict(dataset=dict(data_root=data_root, ann_file='a.json', pipeline=[dict(type='Load')]))
val_evaluator = [dict(ann_file=data_root + 'annotations/b.json')]
other = 'data/coco_old/a.json'
lr = 1
"""


def write_config(tmp_path):
    path = tmp_path / 'dat_x.py'
    path.write_text(CONFIG)
    return str(path)


def test_data_root_moves_all_paths_below_it(tmp_path):
    cfg = load_config(write_config(tmp_path), {'data_root': '/mnt/coco', 'lr': 2})
    assert cfg.train_dataloader.dataset.data_root == '/mnt/coco/'
    assert cfg.val_evaluator[0].ann_file == '/mnt/coco/annotations/b.json'
    assert cfg.train_dataloader.dataset.ann_file == 'a.json'
    assert cfg.other == 'data/coco_old/a.json'
    assert cfg.lr == 2


def test_work_dir(tmp_path):
    path = write_config(tmp_path)
    assert load_config(path).work_dir == 'work_dirs/dat_x'
    assert load_config(path, work_dir='here').work_dir == 'here'
    assert load_config(path, {'work_dir': 'there'}).work_dir == 'there'


def test_resume(tmp_path):
    cfg = load_config(write_config(tmp_path), work_dir=str(tmp_path))
    resume(cfg, 'auto')
    assert 'resume' not in cfg  # nothing to go on from
    (tmp_path / 'last_checkpoint').write_text('epoch_3.pth')
    resume(cfg, None)
    assert 'resume' not in cfg
    resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, 'epoch_3.pth')
    resume(cfg, 'epoch_1.pth')
    assert cfg.load_from == 'epoch_1.pth'
