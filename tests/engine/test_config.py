import pytest
from conftest import ROOT

from mmdat.engine import Overrides, Parser, load_config
from mmdat.engine.config import name_run
from mmdat.errors import UserError

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


@pytest.mark.parametrize(
    ('config', 'work_dir'),
    [
        ('configs/mask_rcnn/dat_x.py', 'work_dirs/mask_rcnn/dat_x'),
        ('configs/dat_x.py', 'work_dirs/dat_x'),
        ('project/configs/old/configs/retinanet/dat_x.py', 'work_dirs/retinanet/dat_x'),
        ('project/experiments/dat_x.py', 'work_dirs/dat_x'),
    ],
)
def test_work_dirs_follow_the_folders_of_configs(tmp_path, config, work_dir):
    path = tmp_path / config
    path.parent.mkdir(parents=True)
    path.write_text('lr = 1')
    assert load_config(str(path)).work_dir == work_dir


def test_work_dir_of_a_config_named_from_within_configs(tmp_path, monkeypatch):
    (tmp_path / 'configs' / 'fcos').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'configs' / 'fcos')
    (tmp_path / 'configs' / 'fcos' / 'dat_x.py').write_text('lr = 1')
    assert load_config('dat_x.py').work_dir == 'work_dirs/fcos/dat_x'


def test_each_config_has_a_work_dir_of_its_own():
    configs = [str(path) for path in (ROOT / 'configs').glob('[!_]*/*.py')]
    assert len({name_run(path) for path in configs}) == len(configs) > 60


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    ],
)
def test_configs_of_the_libraries_by_name(name):
    assert load_config(name).model.backbone.type.startswith('ResNet')


def test_configs_by_name():
    cfg = load_config('mmdat::mask_rcnn/dat_t_1x_coco.py', {'data_root': '/mnt/coco'})
    assert cfg.model.backbone.type == 'mmdat.DAT'
    assert cfg.test_dataloader.dataset.data_root == '/mnt/coco/'
    assert cfg.work_dir == 'work_dirs/mask_rcnn/dat_t_1x_coco'


@pytest.mark.parametrize('name', ['mmdat::mask_rcnn/dat_x.py', 'mmdat::dat_x.py', 'nolib::a/b.py', 'mmdat::'])
def test_names_of_no_config(name):
    with pytest.raises(UserError, match=f'^config {name} ') as info:
        load_config(name)
    assert '\n' not in str(info.value)


def test_names_of_other_packages_are_looked_up_once(monkeypatch):
    """MMEngine reads all metafiles of the package for each."""
    path = str(ROOT / 'configs/retinanet/dat_t_1x_coco.py')
    first = load_config(path)
    monkeypatch.setattr('mmengine.config.utils.load', None)
    assert load_config(path).to_dict() == first.to_dict()


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('my data/images', 'my data/images'),
        ('traffic light,person', ['traffic light', 'person']),
        ('[traffic light, stop sign]', ['traffic light', 'stop sign']),
        ("('a b', 'c d')", ('a b', 'c d')),
        ('[1, 2, (3, 4.5)]', [1, 2, (3, 4.5)]),
        (' 3 ', 3),
        ('None', None),
    ],
)
def test_spaces_inside_of_values(text, value):
    """MMEngine would take them out of names and paths."""
    parser = Parser()
    parser.add_argument('--cfg-options', nargs='+', action=Overrides)
    assert parser.parse_args(['--cfg-options', f'key={text}']).cfg_options == {'key': value}
