"""Wrong configs and command lines are refused in one line, with an exit code, before data are loaded."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.training import CONFIG, write_config
from mmengine.dataset import BaseDataset

BACKBONE = 'model.backbone'

# Config files, written in full or as an addition to a small training, and what is said of them.
CONFIGS = {
    'syntax': ('model = dict(\nx = ]', r'bad\.py, line 2: '),
    'name': ('x = 1\ny = nothing\n', r"bad\.py, line 2: NameError: name 'nothing' is not defined"),
    'base': ("_base_ = 'nowhere.py'", r'_base_ of bad\.py: .*nowhere\.py does not exist'),
    'library base': ("_base_ = 'mmdet::none/nowhere.py'", r'_base_ of bad\.py: .*nowhere\.py'),
    'library': ("_base_ = 'mmdett::none/nowhere.py'", r'bad\.py: .*mmdett'),
    'syntax of a base': ("_base_ = 'broken.py'", r'broken\.py, line 3: '),
    'no dict': (CONFIG + "model['neck'] = 3", 'model: a part of it must be a dict with its type, got 3'),
    'optimizer': (CONFIG + 'optim_wraper = dict(clip_grad=None)', "'optim_wraper'.*mean 'optim_wrapper'"),
    'loop': (CONFIG + 'trian_cfg = dict(max_epochs=9)', "'trian_cfg'.*mean 'train_cfg'"),
    'weights': (CONFIG + "laod_from = 'x.pth'", "'laod_from'.*mean 'load_from'"),
    'model': (CONFIG + 'modle = dict(neck=dict(num_outs=4))', "'modle'.*mean 'model'"),
    'other': ('x = 1', 'model must be a dict.*got None'),
    'no training': (
        CONFIG + 'train_dataloader = None',
        'lacks train_dataloader: train_dataloader, train_cfg',
    ),
    'no metric': (CONFIG + 'val_evaluator = None', 'lacks val_evaluator: val_dataloader, val_cfg'),
    'no data set': (CONFIG + "train_dataloader['dataset'] = None", 'train_dataloader.dataset must be a dict'),
    'hook': (CONFIG + "custom_hooks = [dict(type='EMAHok')]", "custom_hooks.0.type='EMAHok'.*mean 'EMAHook'"),
    'hook settings': (
        CONFIG + "custom_hooks = [dict(type='EarlyStoppingHook', monitr=1)]",
        "'monitr'.*mean 'monitor'",
    ),
    'hook as a name': (CONFIG + "custom_hooks = ['EMAHook']", r"custom_hooks\.0 must be a dict .*'EMAHook'"),
    'schedule': (CONFIG + "param_scheduler = [dict(type='StepLRR', step_size=3)]", "unknown .*mean 'StepLR'"),
    'schedule settings': (
        CONFIG + "param_scheduler = [dict(type='MultiStepLR', milestone=[1])]",
        r"param_scheduler\.0: MultiStepLR has no setting 'milestone', did you mean 'milestones'",
    ),
    'loop settings': (
        CONFIG + 'train_cfg = dict(_delete_=True, by_epoch=True, max_epoch=3)',
        "train_cfg: EpochBasedTrainLoop has no setting 'max_epoch', did you mean 'max_epochs'",
    ),
    'loop without its length': (
        CONFIG + "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop')",
        "EpochBasedTrainLoop needs a setting 'max_epochs'",
    ),
    'loop of no type': (
        CONFIG + 'train_cfg = dict(_delete_=True, max_epochs=3)',
        'needs its type, or by_epoch',
    ),
    'pipeline': (
        CONFIG + "train_dataloader['dataset']['pipeline'] = [dict(type='RandomFlp', prob=0.5)]",
        r"train_dataloader\.dataset\.pipeline\.0\.type='RandomFlp' .*did you mean 'RandomFlip'",
    ),
}
# Overrides of the small training.
OPTIONS = {
    'model=None': 'model must be a dict.*got None',
    'model.type=RetinaNett': "model.type='RetinaNett' is unknown to mmdet, did you mean 'RetinaNet'",
    'model.bakbone.arch=tiny': "--cfg-options: model has no 'bakbone', did you mean 'backbone'",
    'model.test_cfg.scoer_thr=0.1': "model.test_cfg has no 'scoer_thr', did you mean 'score_thr'",
    'model.hed=3': "model: RetinaNet has no setting 'hed'",
    f'{BACKBONE}.type=mmdat.DATT': r"model\.backbone\.type='mmdat\.DATT' .*did you mean 'mmdat\.DAT'",
    f'{BACKBONE}.windw_size=7': r"DAT has no setting 'windw_size', did you mean 'window_size'",
    f'{BACKBONE}.window_size=500': r'model\.backbone \(DAT\): window_size must be .* from 1 to 64 .*memory',
    f'{BACKBONE}.out_indices=3': r'out_indices must be ascending stages .*got out_indices=3',
    f'{BACKBONE}.drop_path_rate=abc': r"drop_path_rate must be a number in \[0, 1\), got .*'abc'",
    f'{BACKBONE}.arch.depth=3': r"model\.backbone\.arch has no 'depth', did you mean 'depths'",
    f'{BACKBONE}.arch.depths.7=3': r'model\.backbone\.arch\.depths is a list of 4',
    f'{BACKBONE}.with_cp=1': r'with_cp must be one of True, False, got with_cp=1',
    f'{BACKBONE}.pos_bias.x=1': r"pos_bias must be one of 'relative', 'fixed', .*got pos_bias=\{'x': 1\}",
    f'{BACKBONE}.init_cfg=dat.pth': r"init_cfg must be None or dict\(type=.*got init_cfg='dat.pth'",
    f'{BACKBONE}.out_indices=(2,3)': r'model\.neck \(FPN\) does .*assert len\(inputs.*2 maps of \[64, 128',
    'model.neck.type=mmdett.FPN': r"model\.neck\.type='mmdett\.FPN' .*did you mean 'mmdet\.FPN'",
    'model.neck.in_channels=[96,192,384]': r'model\.neck\.lateral.* to have 96 channels, but got 32.*maps of',
    'model.neck.in_chanels=3': r"model\.neck: FPN has no setting 'in_chanels', did you mean 'in_channels'",
    'model.bbox_head.in_channels=32': r'model\.bbox_head\.\S* .*to have 32 channels, but got 16',
    'model.bbox_head.num_classes=3': r'num_classes=3, but the train data \(CocoDataset\) have 80 classes',
    'model.bbox_head.loss_cls.type=FocalLos': r"bbox_head\.loss_cls\.type='FocalLos' .*mean 'FocalLoss'",
    'default_scope=mmdett': "default_scope='mmdett' is not installed, did you mean 'mmdet'",
    'optim_wrapper.optimizer.type=AdamWW': r"optim_wrapper\.optimizer\.type='AdamWW' .*did you mean 'AdamW'",
    'optim_wrapper.optimizer.lr=-1': r'optim_wrapper\.optimizer\.lr must be a number not below 0, got -1',
    'optim_wrapper.optimizer.lr=fast': r"optim_wrapper\.optimizer\.lr must be a number .*got 'fast'",
    'optim_wrapper.optimizer.weight_decy=1': r"AdamW has no .*'weight_decy', did you mean 'weight_decay'",
    'optim_wrapper.type=OptimWraper': r"optim_wrapper\.type='OptimWraper' .*did you mean 'OptimWrapper'",
    'param_scheduler.7.gamma=0.1': r'param_scheduler is a list of 2, numbered from 0',
    'default_hooks.checkpont.interval=2': "default_hooks has no 'checkpont', did you mean 'checkpoint'",
    'default_hooks.checkpoint.intervall=2': "CheckpointHook has no .*'intervall', did you mean 'interval'",
    'train_cfg.max_epochs=0': r'train_cfg\.max_epochs must be an integer of at least 1, got 0',
    'train_cfg.val_interval=0': r'train_cfg\.val_interval must be an integer of at least 1, got 0',
    'train_dataloader.batch_size=0': r'train_dataloader\.batch_size must be an integer of at least 1, got 0',
    'train_dataloader.batch_size=two': r"train_dataloader\.batch_size must be .*got 'two'",
    'train_dataloader.num_workers=-1': r'train_dataloader\.num_workers must be an integer of at least 0',
    'train_dataloader.persistent_workers=True': 'train_dataloader: .*needs num_workers > 0',
    'train_dataloader.batchsize=2': "train_dataloader.*'batchsize', did you mean 'batch_size'",
    'train_dataloader.sampler.type=Sampler1': r"train_dataloader\.sampler\.type='Sampler1' is unknown",
    'train_dataloader.dataset.type=CocoDatset': r"dataset\.type='CocoDatset' .*mean 'CocoDataset'",
    'train_dataloader.dataset.ann_fil=x': "CocoDataset has no setting 'ann_fil', did you mean 'ann_file'",
    'train_dataloader.dataset.ann_file=none.json': r'train data \S*none\.json does not exist',
    'val_dataloader.dataset.data_prefix.img=none': r'val data \S*none does not exist',
    'val_evaluator.type=CocoMetrik': "val_evaluator.type='CocoMetrik' .*did you mean 'CocoMetric'",
    'val_evaluator.metrik=bbox': "val_evaluator: CocoMetric has no setting 'metrik', did you mean 'metric'",
    'data_root=nowhere': r'train data nowhere\S* does not exist',
    'randomness.seed=x': "randomness.seed must be None or an integer of at least 0, got 'x'",
    'load_from=none.pth': r'checkpoint none\.pth does not exist',
    'load_from=mmdat://dat_tiny': 'is not a released checkpoint',
    'lod_from=none.pth': "'lod_from' .*did you mean 'load_from'",
}
# Whole commands, {} the small training, with their exit codes.
COMMANDS = {
    'train.py': (2, 'arguments are required: config'),
    'train.py {} --chek': (2, "unrecognized arguments: --chek, did you mean '--check'"),
    'train.py {} more': (2, 'unrecognized arguments: more'),
    'train.py {} --launcher pytorchh': (2, "invalid choice: 'pytorchh'"),
    'train.py {} --launcher pytorch': (1, r'RANK unset.*dist_train\.sh'),
    'train.py {} --cfg-options': (2, '--cfg-options: expected at least one argument'),
    'train.py {} --cfg-options lr': (2, "takes KEY=VALUE, got 'lr'"),
    'train.py {} --cfg-options a=[1,(2]': (2, 'Imbalanced brackets'),
    'train.py nowhere.py': (1, r'config nowhere\.py does not exist'),
    'train.py .': (1, r'config \. does not exist'),
    'train.py {} --amp float16': (1, 'float16 needs a GPU: on CPUs take --amp, which is bfloat16'),
    'train.py {} --amp fp16': (2, "--amp: invalid choice: 'fp16'"),
    'train.py {} --resume nowhere.pth': (1, r'checkpoint nowhere\.pth does not exist'),
    'test.py {}': (2, 'arguments are required: checkpoint'),
    'test.py {} nowhere.pth': (1, r'checkpoint nowhere\.pth does not exist'),
    'test.py {} .': (1, 'is a folder'),
    'test.py {} nowhere.pth --out scores.txt': (1, r'must end in \.pkl'),
    'test.py {} nowhere.pth --cfg-options test_cfg=None': (1, 'lacks test_cfg'),
    'test.py {} nowhere.pth --cfg-options test_dataloader.dataset.type=Coco': (1, "type='Coco' is unknown"),
    'convert_checkpoint.py nowhere.pth clean.pth --arch tiny --generatoin pp': (
        2,
        "did you mean '--generation'",
    ),
    'convert_checkpoint.py nowhere.pth clean.pth --config nowhere.py': (
        1,
        r'config nowhere\.py does not exist',
    ),
    'visualize_key_points.py {} nowhere.pth image.png --cfg-options lr': (2, 'takes KEY=VALUE'),
}
SEGMENTOR, CLASSIFIER = 'semantic_fpn/dat_t_40k_ade20k.py', 'imagenet/dat_t_300e_in1k.py'
OTHER_LIBRARIES = {
    (
        SEGMENTOR,
        'model.decode_head.in_index=[0,1,2,4]',
    ): r'model\.decode_head \(FPNHead\) does not fit .*4 maps',
    (SEGMENTOR, 'model.decode_head.in_channels=[9,9,9,9]'): r'model\.decode_head\S* .*to have 9 channels',
    (SEGMENTOR, 'train_dataloader.dataset.type=ADE20kDataset'): 'ADE20KDataset',
    (
        CLASSIFIER,
        'model.head.in_channels=96',
    ): r'model\.head\.fc \(Linear\) .*96 maps|model\.head\.fc .*cannot be',
    (CLASSIFIER, 'model.neck.type=GlobalPooling'): "model.neck.type='GlobalPooling' is unknown to mmpretrain",
}


@pytest.fixture(scope='module')
def small(tmp_path_factory) -> Path:
    """A training that has nothing wrong."""
    return write_config(tmp_path_factory.mktemp('small'))


@pytest.fixture
def refused(small, tmp_path, monkeypatch, capsys):
    """Runs a tool in this process: exit code, and the one line that it says. Nothing is loaded or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    before = sorted(tmp_path.iterdir())

    def no_data(self):
        raise MemoryError('data were loaded')

    monkeypatch.setattr(BaseDataset, 'full_init', no_data)

    def run(*command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools' / command[0]), *command[1:]])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(sys.argv[0], run_name='__main__')
        captured = capsys.readouterr()
        assert not captured.out or captured.out.startswith('going on from')
        assert captured.err.count('\n') == 1, captured.err
        assert captured.err.startswith('error: ')
        assert sorted(path for path in tmp_path.iterdir() if path.suffix != '.py') == before
        return exit_.value.code, captured.err

    return run


@pytest.mark.parametrize('case', CONFIGS)
def test_config_files(refused, small, tmp_path, case):
    text, message = CONFIGS[case]
    (tmp_path / 'broken.py').write_text('x = 1\n\ny = (\n')
    (tmp_path / 'bad.py').write_text(text.replace('{root}', str(ROOT)))
    code, line = refused('train.py', 'bad.py', '--cfg-options', f'data_root={small.parent}/data')
    assert code == 1
    assert re.search(message, line), line


@pytest.mark.parametrize('option', OPTIONS)
def test_overrides(refused, small, option):
    data = [] if option.startswith('data_root') else [f'data_root={small.parent}/data']
    code, line = refused('train.py', str(small), '--cfg-options', *data, option)
    assert code == 1
    assert re.search(OPTIONS[option], line), line


@pytest.mark.parametrize('command', COMMANDS)
def test_command_lines(refused, small, monkeypatch, command):
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    code, message = COMMANDS[command]
    got, line = refused(*command.replace('{}', str(small)).split())
    assert got == code, line
    assert re.search(message, line), line


@pytest.mark.parametrize(('config', 'option'), OTHER_LIBRARIES)
def test_segmentors_and_classifiers(refused, config, option):
    code, line = refused('train.py', str(ROOT / 'configs' / config), '--cfg-options', option)
    assert code == 1
    assert re.search(OTHER_LIBRARIES[config, option], line), line


def test_folders_of_other_classes(refused, tmp_path):
    config = str(ROOT / 'configs/learning/flowers5_dat.py')
    data = tmp_path / 'data.py'  # named like a config, so as to be there before
    for name in 'abc':
        (data / 'train' / name).mkdir(parents=True)
    code, line = refused('train.py', config, '--cfg-options', f'data_root={data}')
    assert code == 1
    assert 'model.head.num_classes=5, but the train data (CustomDataset) have 3 classes' in line


def test_the_traceback_can_be_had(small, monkeypatch, capsys):
    monkeypatch.setenv('MMDAT_TRACEBACK', '1')
    monkeypatch.setattr(sys, 'argv', ['train.py', str(small), '--cfg-options', 'model.neck.type=FPNN'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith('Traceback')
    assert any('build_from_cfg' in line for line in lines)
    assert lines[-1].startswith("error: model.neck.type='FPNN' is unknown")
