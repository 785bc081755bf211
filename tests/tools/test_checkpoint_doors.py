"""Every way by which a checkpoint enters the tools: files of all formats, malicious and damaged ones."""

import pickle
from pathlib import Path

import pytest
import torch
from helpers.goldens import case_settings, read_golden
from helpers.published import MALICIOUS, installed_yacs, save_classifier, save_malicious, weights_of
from helpers.server import running_server
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import from_official

# A classifier as small as the goldens', on a few images.
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmdat.DAT', **{settings!r}),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels={channels}, topk=(1,)),
)
data_root = '{root}/data/'
data_preprocessor = dict(num_classes=10, mean=[120.0] * 3, std=[60.0] * 3)
_load = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=data_root, pipeline=_load),
)
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy')
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=9)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = dict(type='MultiStepLR', milestones=[1, 2])
log_level = 'INFO'
"""


def write_config(folder: Path, name: str = 'cvpr_base_128w4', **settings) -> None:
    case, _ = read_golden(name)
    settings = case_settings(case) | dict(out_indices=(3,)) | settings
    channels = settings['arch']['embed_dims'] * 8
    (folder / 'config.py').write_text(CONFIG.format(settings=settings, channels=channels, root=folder))


# Arguments of the tools, and of `--cfg-options`.
DOORS = {
    'test.py': (['test.py', 'config.py', '{}'], []),
    'resume': (['train.py', 'config.py', '--resume', '{}'], []),
    'load_from': (['train.py', 'config.py'], ['load_from={}']),
    'init_cfg': (
        ['train.py', 'config.py'],
        ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint={}'],
    ),
    'converter': (['convert_checkpoint.py', '{}', 'clean.pth', '--config', 'config.py'], []),
    'key points': (['visualize_key_points.py', 'config.py', '{}', 'data/a/0.png'], []),
    'pictures': (['visualize.py', 'config.py', '{}', 'data/a/0.png'], []),
    'export': (['export.py', 'config.py', '{}', '--out', 'x.pt2'], []),
    'inference': (['infer.py', 'config.py', '{}', 'data/a', '--out', 'out'], []),
}


@pytest.fixture
def enter(folder, run_here):
    """Brings a checkpoint through a door; in this process, because to start one takes seconds."""

    def enter(door: str, path: str | Path, *flags: str, **options) -> tuple[int, str]:
        arguments, own_options = DOORS.get(door, (['train.py', 'config.py'], []))
        all_options = own_options + [f'{key.replace("__", ".")}={value}' for key, value in options.items()]
        command = [*arguments, *flags, *(['--cfg-options', *all_options] if all_options else [])]
        command = [argument.replace('{}', str(path)) for argument in command]
        return run_here(*command)

    return enter


def assert_refused(folder: Path, code: int, output: str, message: str) -> None:
    """One line, an exit code, and nothing written. Notes on the data, which come first, are no part of it."""
    assert code == 1, output
    lines = [line for line in output.splitlines(keepends=True) if not line.startswith('note: ')]
    line, _, rest = ''.join(lines).partition('\n')
    assert line.startswith('error: ')
    assert message in line
    assert rest.startswith('going on from') or not rest
    assert {path.name for path in folder.iterdir()} <= {'config.py', 'data', 'files', 'home', 'out'}
    assert not list(folder.glob('out/*'))


@pytest.mark.parametrize('kind', MALICIOUS)
@pytest.mark.parametrize('door', DOORS)
def test_malicious_files(folder, enter, door, kind):
    write_config(folder)
    path = save_malicious(folder / 'files', kind, weights_of('cvpr_base_128w4'), folder / 'planted')
    code, output = enter(door, path)
    assert_refused(folder, code, output, 'bare pickle' if kind == 'bare pickle' else 'asks for `os.makedirs`')


@pytest.mark.parametrize('door', [door for door in DOORS if door != 'converter'])
@pytest.mark.parametrize('by', ['path', 'http', 'mmdat'])
def test_malicious_files_behind_the_preflight(folder, enter, monkeypatch, door, by):
    """What MMEngine itself would do with them, were it asked."""
    monkeypatch.setattr('mmdat.engine.preflight', lambda *args, **kwargs: None)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    write_config(folder)
    path = save_malicious(folder / 'files', 'among the weights', {}, folder / 'planted')
    with running_server() as server:
        server.files = {'/dat_tiny_in1k_224.pth': Path(path).read_bytes()}
        monkeypatch.setenv('MMDAT_MIRROR', server.url)
        address = {'http': f'{server.url}/dat_tiny_in1k_224.pth', 'mmdat': 'mmdat://dat_tiny_in1k_224'}
        code, output = enter(door, address.get(by, path))
    assert code == 1
    assert 'error: ' in output
    assert 'asks for `os.makedirs`' in output
    assert not (folder / 'planted').exists()


@pytest.mark.parametrize('door', ['test.py', 'load_from', 'init_cfg', 'converter'])
def test_trusted_files(folder, enter, door):
    write_config(folder)
    weights = weights_of('cvpr_base_128w4')
    path = save_malicious(folder / 'files', 'in the configuration', weights, folder / 'planted')
    with installed_yacs():
        code, output = enter(door, path, '--trust-checkpoint')
    assert code == 0, output
    assert (folder / 'planted').exists()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize(
    ('name', 'spoil', 'message'),
    [
        ('x.pth', truncated, 'incomplete or damaged'),
        ('x.pth', lambda path: path.write_bytes(b''), 'is empty'),
        ('x.pth', lambda path: path.write_text('<html>'), 'a web page'),
        ('x.jpg', lambda path: None, 'not named like a checkpoint'),
        ('x.safetensors', lambda path: None, 'wrong suffix'),
        ('x.pth', lambda path: path.unlink(), 'does not exist'),
    ],
)
def test_damaged_files(folder, enter, door, name, spoil, message):
    write_config(folder)
    path = folder / 'files' / name
    save_classifier(path, weights_of('cvpr_base_128w4'))
    spoil(path)
    assert_refused(folder, *enter(door, path), message)


def native_file(folder: Path, name: str) -> Path:
    """The weights as MMEngine would have saved them."""
    path = folder / 'files' / 'native.pth'
    weights = from_official(weights_of(name))
    case, _ = read_golden(name)
    backbone = DAT(**case_settings(case) | dict(out_indices=(3,)))
    model = nn.ModuleDict({'backbone': backbone, 'head': nn.ModuleDict({'fc': nn.Linear(1, 1)})})
    state_dict = model.state_dict()
    state_dict.update(weights)
    torch.save({'meta': {}, 'state_dict': state_dict}, path)
    return path


def scores(path) -> torch.Tensor:
    with open(path, 'rb') as file:
        return torch.stack([prediction['pred_score'] for prediction in pickle.load(file)])


FORMATS = {
    'stripped': lambda path, weights, case: save_classifier(path, weights),
    'of a training': lambda path, weights, case: save_classifier(path, weights, case['config'], 'module.'),
    'bare': lambda path, weights, case: torch.save(weights, path),
}
GENERATIONS = {'cvpr_base_128w4': 'dat_tiny_in1k_224.pth', 'pp_base_128': 'dat_pp_tiny_in1k_224.pth'}


@pytest.mark.parametrize(('name', 'file_name'), GENERATIONS.items())
def test_classifiers_of_the_authors(folder, enter, name, file_name):
    """In all formats, through all doors, to the same numbers."""
    write_config(folder, name)
    assert enter('test.py', native_file(folder, name), '--out', 'native.pkl')[0] == 0
    expected, case = scores('native.pkl'), read_golden(name)[0]
    assert expected.std() > 0.01
    weights = from_official(weights_of(name))
    path = folder / 'files' / file_name
    for save in FORMATS.values():
        save(path, weights_of(name), case)
        code, output = enter('test.py', path, '--out', 'out.pkl')
        assert code == 0, output
        assert f'{len(weights)} weights loaded' in output
        torch.testing.assert_close(scores('out.pkl'), expected, atol=1e-5, rtol=0)

    FORMATS['of a training'](path, weights_of(name), case)
    for door in ('load_from', 'init_cfg'):
        options = dict(work_dir='trained', optim_wrapper__optimizer__lr=0)
        code, output = enter(door, path, '--no-resume', **options)
        assert code == 0, output
        assert 'missing: none; unexpected: none' in output
        trained = torch.load('trained/epoch_1.pth', weights_only=False)['state_dict']
        for key, value in weights.items():
            if key.startswith('backbone.') or door == 'load_from':
                assert torch.equal(trained[key], value), key

    code, output = enter('converter', path)
    assert code == 0, output
    assert enter('test.py', 'clean.pth', '--out', 'out.pkl')[0] == 0
    torch.testing.assert_close(scores('out.pkl'), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('hooks', ['', "custom_hooks = [dict(type='EMAHook')]\n"])
def test_our_training_goes_on(folder, enter, hooks):
    """With the state of optimizer, schedule and logs, and without running the configuration in the file."""
    write_config(folder)
    with open('config.py', 'a') as config:
        config.write(hooks)
    assert enter('none', '', work_dir='work')[0] == 0
    path = folder / 'work' / 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    assert {'message_hub', 'optimizer', 'param_schedulers'} <= content.keys()
    content['meta']['config'] = f"import os\nos.makedirs('{folder}/planted')\n"
    torch.save(content, path)
    code, output = enter('resume', path, work_dir='work', train_cfg__max_epochs=2)
    assert code == 0, output
    assert 'resumed epoch: 1, iter: 1' in output
    assert not (folder / 'planted').exists()
    resumed = torch.load('work/epoch_2.pth', weights_only=False)
    assert {state['step'].item() for state in resumed['optimizer']['state'].values()} == {2}
    assert resumed['param_schedulers'][0]['_global_step'] == 2
    losses = resumed['message_hub']['log_scalars']['train/loss']
    assert len(losses.data[0]) == 2
    assert resumed['state_dict']._metadata['backbone']['generation'] == 'cvpr'
    assert ('ema_state_dict' in resumed) == bool(hooks)
    assert enter('test.py', 'work/epoch_2.pth')[0] == 0


def test_averages_start_from_the_authors_weights(folder, enter):
    write_config(folder)
    with open('config.py', 'a') as config:
        config.write("custom_hooks = [dict(type='EMAHook')]\n")
    path = folder / 'files' / 'dat_tiny_in1k_224.pth'
    save_classifier(path, weights_of('cvpr_base_128w4'))
    assert enter('load_from', path, work_dir='work', optim_wrapper__optimizer__lr=0)[0] == 0
    averages = torch.load('work/epoch_1.pth', weights_only=False)['state_dict']
    for key, value in from_official(weights_of('cvpr_base_128w4')).items():
        torch.testing.assert_close(averages[key], value, msg=key)


def test_a_file_of_the_authors_is_nothing_to_resume(folder, enter):
    write_config(folder)
    path = folder / 'files' / 'dat_tiny_in1k_224.pth'
    FORMATS['of a training'](path, weights_of('cvpr_base_128w4'), read_golden('cvpr_base_128w4')[0])
    code, output = enter('resume', path)
    assert code == 1
    assert 'no state of a training to resume: `--no-resume --cfg-options load_from=' in output


@pytest.mark.parametrize('door', DOORS)
def test_a_file_that_does_not_tell_its_generation(folder, enter, door):
    write_config(folder)
    path = folder / 'files' / 'mine.pth'
    save_classifier(path, weights_of('cvpr_base_128w4'))
    code, output = enter(door, path)
    assert code == 1
    how = {
        'converter': '--generation',
        'init_cfg': 'generation=...)',
        'resume': 'no state',
        'key points': 'load_generation',
        'pictures': 'load_generation',
        'export': 'load_generation',
        'inference': 'load_generation',
    }
    assert how.get(door, '--cfg-options load_generation=') in output
    if door == 'converter':
        assert enter(door, path, '--generation', 'cvpr')[0] == 0
    elif door == 'test.py':
        assert enter(door, path, load_generation='cvpr')[0] == 0


def test_the_other_generation(folder, enter):
    """All names and shapes fit."""
    case, _ = read_golden('cvpr_base_128w4')
    arch = case_settings(case)['arch'] | dict(generation='pp')
    write_config(folder, arch=arch, overlap_patches=False, lpu=False, conv_mlp=False)
    path = folder / 'files' / 'dat_tiny_in1k_224.pth'
    save_classifier(path, weights_of('cvpr_base_128w4'))
    for door in ('test.py', 'load_from'):
        code, output = enter(door, path)
        assert code == 1
        assert 'error: ' in output
        assert "(CVPR'22), but the model is an arch of its own (DAT++): they differ in generation" in output
