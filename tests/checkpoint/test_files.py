import io
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers.published import MALICIOUS, Planted, installed_yacs, save_malicious
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from mmdat.checkpoint import CheckpointError, read_checkpoint, trust_checkpoints

WEIGHTS = {'stages.0.norm.bias': torch.arange(3.0), 'stages.0.norm.weight': torch.ones(3)}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / 'planted'


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as info:
        read_checkpoint(str(path))
    message = str(info.value)
    assert '\n' not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize('kind', MALICIOUS)
@pytest.mark.parametrize('lazy', [False, True])
@pytest.mark.parametrize('environment', [{}, {'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}])
def test_nothing_is_run(tmp_path, marker, monkeypatch, kind, lazy, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = save_malicious(tmp_path, kind, WEIGHTS, marker)
    with pytest.raises(CheckpointError, match=r'refused|not a checkpoint') as info:
        read_checkpoint(path, lazy=lazy)
    assert not marker.exists()
    assert '--trust-checkpoint' in str(info.value) or 'bare pickle' in str(info.value)


def test_the_refusal_says_what_the_file_asks_for(tmp_path, marker):
    path = save_malicious(tmp_path, 'among the weights', WEIGHTS, marker)
    assert 'asks for `os.makedirs`' in refusal(path)
    torch.save({'model': torch.nn.Linear(1, 1)}, path)
    assert 'asks for `torch.nn.modules.linear.Linear`' in refusal(path)


def test_trusted_files_are_read_in_full(tmp_path, marker):
    path = save_malicious(tmp_path, 'among the weights', WEIGHTS, marker)
    trust_checkpoints()
    try:
        assert read_checkpoint(path).keys() == {'model'}
    finally:
        trust_checkpoints(False)
    assert marker.exists()


class Getattr:
    """Pickles as a call of `getattr`, which MMEngine's training state needs for one class."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return getattr, self.args


@pytest.mark.parametrize('args', [(HistoryBuffer, '__init__'), (dict, 'update'), ('x', 'join')])
def test_getattr_is_not_to_be_had(tmp_path, args):
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': WEIGHTS, 'message_hub': Getattr(*args)}, path)
    assert 'refused' in refusal(path)


def test_training_state_of_mmengine(tmp_path):
    buffer = HistoryBuffer()
    for value in (1.0, 2.0):
        buffer.update(value)
    buffer.mean()
    state = {
        'message_hub': {'log_scalars': {'train/loss': buffer}, 'runtime_info': {'epoch': 1}},
        'numbers': [np.float32(1.5), np.float64(2.5), np.int64(3), np.bool_(True)],
        'arrays': [np.arange(6).reshape(2, 3), np.array(['a', 'bc']), np.zeros((0, 2), np.float16)],
    }
    path = str(tmp_path / 'epoch_1.pth')
    torch.save({'state_dict': WEIGHTS, **state}, path)
    read = read_checkpoint(path)
    loss = read['message_hub']['log_scalars']['train/loss']
    assert type(loss) is HistoryBuffer
    assert loss.statistics('mean') == 1.5
    assert read['numbers'] == state['numbers']
    assert [type(n) for n in read['numbers']] == [type(n) for n in state['numbers']]
    for array, expected in zip(read['arrays'], state['arrays']):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_arrays_of_objects_are_refused(tmp_path, marker):
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': WEIGHTS, 'array': np.array([Planted(marker)])}, path)
    refusal(path)
    assert not marker.exists()


def test_yacs_becomes_a_plain_dict(tmp_path):
    path = str(tmp_path / 'ckpt_epoch_299.pth')
    with installed_yacs() as config:
        torch.save({'model': WEIGHTS, 'config': config({'AUG': {'MIXUP': 0.8}, 'TAGS': ('a', None)})}, path)
    config = read_checkpoint(path)['config']
    assert config == {'AUG': {'MIXUP': 0.8}, 'TAGS': ('a', None)}
    assert type(config).__module__ == type(config['AUG']).__module__ == 'collections'


def saved(weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('x.pth', b'', 'is empty'),
        ('x.pth', saved(WEIGHTS)[:-100], 'incomplete or damaged'),
        ('x.pth', saved(WEIGHTS)[:100], 'incomplete or damaged'),
        ('x.pth', zipped('model.py', b'x = 1'), 'incomplete or damaged'),
        ('x.pth', b'\n<!DOCTYPE html><html>', 'a web page'),
        ('x.pth', b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
        ('x.pth', b'model = dict(depth=50)\n', 'but a text'),
        ('x.pth', b'\x89PNG\r\n\x1a\n\x00\x00', 'another or a damaged file'),
        ('x.pth', pickle.dumps(1), 'bare pickle'),
        ('x.pth', saved([WEIGHTS]), 'holds no weights but a list'),
        ('x.jpg', saved(WEIGHTS), 'not named like a checkpoint'),
        ('x.py', saved(WEIGHTS), 'not named like a checkpoint'),
        ('checkpoint', saved(WEIGHTS), 'not named like a checkpoint'),
        ('x.safetensors', saved(WEIGHTS), "wrong suffix: it holds PyTorch's own format"),
        ('x.pth', b'\x08\0\0\0\0\0\0\0{}      ', 'wrong suffix: it holds safetensors data'),
        ('x.safetensors', b'\x09\0\0\0\0\0\0\0{"a": [', 'incomplete or damaged'),
        ('x.safetensors', b'\x80\0\0\0\0\0\0\0{"a": {}}', 'incomplete or damaged'),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert message in refusal(path)


def test_missing_files_and_folders(tmp_path):
    assert 'does not exist' in refusal(tmp_path / 'x.pth')
    assert 'is a folder' in refusal(tmp_path)


@pytest.mark.parametrize('keep', [0.1, 0.5, 0.99])
def test_truncated_older_format(tmp_path, keep):
    path = tmp_path / 'x.pth'
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert 'incomplete or damaged' in refusal(path)


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / 'x.safetensors'
    tensors = {
        'a': torch.randn(2, 3),
        'b': torch.tensor(7),
        'c': torch.zeros(0, 4, dtype=torch.float16),
        'd': torch.randn(3).bfloat16(),
        'e': torch.tensor([True, False]),
    }
    save_file(tensors, path, {'format': 'pt'})
    content = read_checkpoint(str(path))
    assert content['meta'] == {'format': 'pt'}
    read = content['state_dict']
    assert read.keys() == tensors.keys()
    for key, value in tensors.items():
        assert read[key].dtype == value.dtype
        assert torch.equal(read[key], value)
    path.write_bytes(path.read_bytes()[:-1])
    assert 'incomplete or damaged' in refusal(path)


def test_safetensors_is_an_extra(tmp_path, monkeypatch):
    path = tmp_path / 'x.safetensors'
    save_file(WEIGHTS, path)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    assert '`pip install safetensors`' in refusal(path)


DAMAGE = {
    'half': lambda content: content[: len(content) // 2],
    'the last byte': lambda content: content[:-1],
    'everything': lambda content: b'',
    'a bit': lambda content: flip(content, 8 * len(content) // 2),
    'zeros': lambda content: content[:6000] + bytes(4096) + content[6000 + 4096 :],
}


def flip(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_that_pytorch_does_not_see(tmp_path, damage):
    path = tmp_path / 'epoch_1.pth'
    content = saved({'state_dict': {'weight': torch.randn(5000)}})
    path.write_bytes(DAMAGE[damage](content))
    message = refusal(path)
    assert ('is empty' if damage == 'everything' else 'incomplete or damaged') in message
    if damage in ('a bit', 'zeros'):
        assert 'the checksum of archive/data/0 is wrong' in message
        torch.load(path)


def test_no_flipped_bit_goes_unseen(tmp_path):
    """Anywhere in the file: it is refused, or what it holds is as before."""
    path = tmp_path / 'x.pth'
    weights = {'weight': torch.randn(50), 'epoch': 3}
    content = saved(weights)
    outcomes = []
    for bit in np.random.default_rng(0).choice(8 * len(content), 300, replace=False):
        path.write_bytes(flip(content, int(bit)))
        try:
            read = read_checkpoint(str(path))
        except CheckpointError:
            outcomes.append('refused')
            continue
        assert read['epoch'] == 3
        assert torch.equal(read['weight'], weights['weight'])
        outcomes.append('as before')
    assert outcomes.count('refused') > 50


def test_files_without_checksums_are_read(tmp_path):
    path = str(tmp_path / 'x.pth')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path).keys() == WEIGHTS.keys()
