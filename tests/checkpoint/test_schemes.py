"""MMEngine's loader, by itself and after mmdat's tools have taken it over."""

import os
from pathlib import Path

import pytest
import torch
from helpers.goldens import case_settings, read_golden
from helpers.published import save_classifier, save_malicious, weights_of
from helpers.server import running_server
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError, from_official
from mmdat.checkpoint.schemes import guard_schemes
from mmdat.released import RELEASED


@pytest.fixture
def guarded(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    for name in ('load_from_http', '_safe_torch_load'):
        monkeypatch.setattr(mmengine_checkpoint, name, getattr(mmengine_checkpoint, name))
    guard_schemes()


@pytest.mark.parametrize(
    'address', ['mmdat://dat_pp_tiny_in1k_224', RELEASED['dat_pp_tiny_in1k_224'].url], ids=['name', 'url']
)
def test_released_files_in_the_libraries_own_tools(address, tmp_path, monkeypatch):
    """`load_from`, `init_detector`, `get_model` and the like end here."""
    monkeypatch.chdir(tmp_path)
    os.mkdir('checkpoints')
    weights = weights_of('pp_base_128')
    save_classifier('checkpoints/dat_pp_tiny_in1k_224.pth', weights)
    settings = case_settings(read_golden('pp_base_128')[0])
    head = nn.ModuleDict({'fc': nn.Linear(128, 10)})
    model = nn.ModuleDict({'backbone': DAT(**settings | dict(out_indices=(3,))), 'head': head})
    load_checkpoint(model, address, strict=True)
    for key, value in from_official(weights).items():
        assert torch.equal(model.state_dict()[key], value), key

    arch = settings['arch'] | dict(generation='cvpr')
    other = nn.ModuleDict({'backbone': DAT(**settings | dict(arch=arch, out_indices=(3,)))})
    with pytest.raises(CheckpointError, match='differ in generation'):
        load_checkpoint(other, 'mmdat://dat_pp_tiny_in1k_224')


@pytest.mark.parametrize('scheme', ['torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls'])
def test_names_that_mmengine_looks_up(guarded, tmp_path, monkeypatch, scheme):
    tables = dict(modelzoo='torchvision', torchvision='torchvision', mmcls='mmcls')
    table = tables.get(scheme, 'external')
    path = save_malicious(tmp_path, 'among the weights', {}, tmp_path / 'planted')
    with running_server() as server:
        server.files['/resnet.pth'] = Path(path).read_bytes()
        models = {'resnet': f'{server.url}/resnet.pth'}
        monkeypatch.setattr(mmengine_checkpoint, f'get_{table}_models', lambda: models)
        with pytest.raises(CheckpointError, match=r'asks for `os\.makedirs`'):
            CheckpointLoader.load_checkpoint(f'{scheme}://resnet')
    assert not (tmp_path / 'planted').exists()


@pytest.mark.parametrize('address', ['s3://b/x.pth', 'petrel://b/x.pth', 'cluster:s3://b/x.pth', 'pavi://x'])
def test_stores_that_only_mmengine_reads(guarded, address):
    with pytest.raises(CheckpointError, match='is refused, because MMEngine would run'):
        CheckpointLoader.load_checkpoint(address)


def test_files_of_other_networks_stay_as_they_are(guarded, tmp_path):
    state_dict = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).state_dict()
    content = {'meta': {'epoch': 1, 'config': 'raise SystemExit'}, 'state_dict': state_dict, 'optimizer': {}}
    torch.save(content, tmp_path / 'x.pth')
    read = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    assert read.keys() == content.keys()
    assert read['meta'] == {'epoch': 1}
    assert read['state_dict']._metadata == state_dict._metadata
    torch.save(state_dict, tmp_path / 'bare.pth')
    assert list(CheckpointLoader.load_checkpoint(str(tmp_path / 'bare.pth'))['state_dict']) == list(
        state_dict
    )
