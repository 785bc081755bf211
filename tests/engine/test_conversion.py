import pytest
import torch
from helpers.goldens import case_settings, read_golden
from helpers.narrow import ARCH
from helpers.published import save_classifier, save_mmcv, weights_of
from torch import nn

from mmdat.architectures import ARCHITECTURES, Architecture
from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError, from_official, load_pretrained, read_checkpoint
from mmdat.engine import convert_checkpoint


@pytest.fixture
def narrow_arch(monkeypatch):
    """An arch that is small enough for tests, by name."""
    monkeypatch.setitem(ARCHITECTURES, 'narrow', Architecture(**ARCH))


def classifier(case: dict) -> nn.Module:
    """A model of a golden case, as far as its file says: a backbone with the last map, and a linear head."""
    backbone = DAT(**case_settings(case) | dict(out_indices=(3,)))
    head = nn.ModuleDict({'fc': nn.Linear(backbone.norm3.normalized_shape[0], 10)})
    return nn.ModuleDict({'backbone': backbone, 'head': head})


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    ('name', 'file_name', 'generation'),
    [
        ('cvpr_base_128w4', 'dat_tiny_in1k_224.pth', 'cvpr'),
        ('pp_base_128', 'ckpt_epoch_299.pth', 'pp'),
    ],
)
def test_classifiers(tmp_path, name, file_name, generation, suffix):
    case, _ = read_golden(name)
    path = save_classifier(tmp_path / file_name, weights_of(name), case['config'], 'module.')
    clean = str(tmp_path / 'out' / f'clean{suffix}')
    report = convert_checkpoint(path, clean, classifier(case))
    weights = from_official(weights_of(name))
    assert f'{len(weights)} weights loaded' in report
    assert 'renamed: cls_head.weight -> head.fc.weight (1)' in report
    assert 'not weights: optimizer, lr_scheduler, max_accuracy, epoch, config' in report
    assert ('relative_position_index' in report) == (generation == 'cvpr')

    content = read_checkpoint(clean)
    assert content.keys() == {'meta', 'state_dict'}
    assert f'"generation": "{generation}"' in str(content['meta']['mmdat']).replace("'", '"')
    assert all(torch.equal(content['state_dict'][key], value) for key, value in weights.items())
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [f'clean{suffix}']

    # under any name, since the file now knows what it is
    backbone = DAT(**case_settings(case) | dict(out_indices=(3,)))
    assert load_pretrained(backbone, clean).loaded == len(backbone.state_dict())
    other = case_settings(case)
    other['arch'] |= dict(generation={'cvpr': 'pp', 'pp': 'cvpr'}[generation])
    with pytest.raises(CheckpointError, match='differ in generation'):
        load_pretrained(DAT(**other), clean)


def test_by_arch_neck_and_head_are_taken_as_they_are(tmp_path, narrow_arch):
    backbone = nn.ModuleDict({'backbone': DAT('narrow', out_indices=(1, 2, 3))}).state_dict()
    heads = {'neck.lateral_convs.0.conv.weight': torch.ones(2), 'bbox_head.retina_cls.bias': torch.ones(3)}
    path = save_mmcv(tmp_path / 'epoch_12.pth', {**backbone, **heads})
    clean = str(tmp_path / 'clean.pth')
    report = convert_checkpoint(path, clean, 'narrow', 'cvpr')
    assert 'taken as they are, for want of a config: neck.lateral_convs.*.conv.weight' in report
    assert 'meta.config' in report
    content = read_checkpoint(clean)
    assert content['meta']['CLASSES'] == ('person', 'bicycle')
    assert content['meta'].keys() == {'CLASSES', 'PALETTE', 'mmdat'}


def test_by_arch_tables_of_other_sizes_are_refused(tmp_path, narrow_arch):
    model = nn.ModuleDict({'backbone': DAT('narrow', img_size=256)})
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'of another image or window size .* --config names a config'):
        convert_checkpoint(str(tmp_path / 'x.pth'), str(tmp_path / 'clean.pth'), 'narrow')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


def test_with_a_model(tmp_path):
    """Its tables give the sizes, and neck and head must fit."""
    case, _ = read_golden('det_base_128x192')
    weights = {f'backbone.{key}': value for key, value in weights_of('det_base_128x192').items()}
    backbone = DAT(**case_settings(case) | dict(img_size=96))
    model = nn.ModuleDict({'backbone': backbone, 'neck': nn.Linear(2, 2)})
    path, clean = tmp_path / 'epoch_12.pth', tmp_path / 'clean.pth'
    save_mmcv(path, weights | {'neck.weight': torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r'1 missing: neck\.bias'):
        convert_checkpoint(str(path), str(clean), model)
    assert not clean.exists()
    save_mmcv(path, weights | {'neck.weight': torch.ones(2, 2), 'neck.bias': torch.ones(2)})
    report = convert_checkpoint(str(path), str(clean), model)
    assert 'attn.position_bias_table: (2, 111, 111) -> (2, 47, 47)' in report
    assert 'for want of a config' not in report


def test_our_training_files_shrink(tmp_path, narrow_arch):
    backbone = DAT('narrow')
    content = {
        'meta': {'epoch': 3, 'cfg': 'x = 1', 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': nn.ModuleDict({'backbone': backbone}).state_dict(),
        'optimizer': {'state': {0: torch.zeros(3)}},
        'message_hub': {},
    }
    torch.save(content, tmp_path / 'epoch_3.pth')
    report = convert_checkpoint(str(tmp_path / 'epoch_3.pth'), str(tmp_path / 'clean.pth'), 'narrow')
    assert 'dropped, not weights: optimizer, message_hub, meta.epoch, meta.cfg' in report
    clean = read_checkpoint(str(tmp_path / 'clean.pth'))
    assert clean['meta']['dataset_meta'] == {'classes': ('a', 'b')}
    assert clean['meta']['mmdat'].items() >= backbone.identity.items()
    assert clean['state_dict']._metadata['backbone'].items() >= backbone.identity.items()


@pytest.mark.parametrize(
    ('destination', 'message'), [('x.onnx', r'must end in \.pth'), ('clean.pth', 'does not tell')]
)
def test_nothing_is_written_in_vain(tmp_path, destination, message):
    path = save_classifier(tmp_path / 'mine.pth', weights_of('cvpr_base_128w4'))
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(path, str(tmp_path / destination), 'tiny')
    assert [path.name for path in tmp_path.iterdir()] == ['mine.pth']


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_classifier(tmp_path / 'dat_tiny_in1k_224.pth', weights_of('cvpr_base_128w4'))
    (tmp_path / 'clean.pth').write_text('old')

    def full(content, path):
        open(path, 'wb').close()
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='No space'):
        convert_checkpoint(path, str(tmp_path / 'clean.pth'), classifier(read_golden('cvpr_base_128w4')[0]))
    assert (tmp_path / 'clean.pth').read_text() == 'old'
    assert len(list(tmp_path.iterdir())) == 2
