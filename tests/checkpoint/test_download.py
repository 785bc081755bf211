import dataclasses
import hashlib
import io
import multiprocessing
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.published import save_malicious
from helpers.server import running_server
from mmengine.runner import CheckpointLoader

from mmdat.checkpoint import CheckpointError, find_checkpoint
from mmdat.checkpoint.download import download
from mmdat.checkpoint.locations import cache_folder
from mmdat.released import RELEASED, Release

WEIGHTS = {f'layer{i}.weight': torch.randn(300, 300) for i in range(20)}  # 7 MB


def saved(weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


@pytest.fixture
def server():
    with running_server() as server:
        yield server


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working directory, and an empty cache."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('MMDAT_MIRROR', raising=False)
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'cwd').mkdir()
    monkeypatch.chdir(tmp_path / 'cwd')
    return tmp_path


def files_below(folder) -> set[str]:
    return {name for _, _, names in os.walk(folder) for name in names}


def test_a_released_file_is_downloaded_once(server, home, monkeypatch, capsys):
    server.files['/dat_tiny_in1k_224.pth'] = saved(WEIGHTS)
    monkeypatch.setenv('MMDAT_MIRROR', server.url + '/')
    for _ in range(2):
        path = find_checkpoint('mmdat://dat_tiny_in1k_224')
    assert path == os.path.join(cache_folder(), 'dat_tiny_in1k_224.pth')
    assert Path(path).read_bytes() == server.files['/dat_tiny_in1k_224.pth']
    assert len(server.requests) == 1
    assert files_below(home) == {'dat_tiny_in1k_224.pth'}
    assert re.search(r'dat_tiny_in1k_224\.pth .* 7\.2/7\.2 MB', capsys.readouterr().err)


def test_the_authors_address_serves_the_file_itself(server, home, monkeypatch):
    monkeypatch.setattr('mmdat.released._TSINGHUA', f'{server.url}/f/{{}}/?dl=1')
    release = RELEASED['dat_pp_tiny_mask_rcnn_1x']
    server.files['/f/2b61106279ae488bbb45/?dl=1'] = saved(WEIGHTS)
    assert find_checkpoint(f'mmdat://{release.config}').endswith('dat_pp_tiny_mask_rcnn_1x.pth')
    assert Release('x', 'cvpr', 'x', 'ID').url.endswith('/f/ID/?dl=1')


@pytest.mark.parametrize('folder', ['checkpoints', None])
@pytest.mark.parametrize('name', ['dat_pp_tiny_mask_rcnn_1x', 'mrcn_tiny_1x_4n_dp00_lr4'])
def test_files_at_hand_are_found_under_either_name(home, folder, name):
    folder = folder or cache_folder()
    os.makedirs(folder)
    torch.save(WEIGHTS, f'{folder}/{name}.pth')
    assert find_checkpoint('mmdat://dat_pp_tiny_mask_rcnn_1x') == os.path.join(folder, f'{name}.pth')


def test_configs_of_the_two_generations_share_names_so_they_do_not_count(home):
    os.makedirs('checkpoints')
    torch.save(WEIGHTS, 'checkpoints/dat_tiny.pth')
    with pytest.raises(CheckpointError, match='not a released checkpoint'):
        find_checkpoint('mmdat://dat_tiny')


def test_a_broken_download_goes_on(server, home):
    server.files['/x.pth'] = content = saved(WEIGHTS)
    server.breaks_after = 3_000_000
    path = str(home / 'x.pth')
    download(f'{server.url}/x.pth', path)
    assert Path(path).read_bytes() == content
    assert [start for _, start in server.requests] == [0, 3_000_000, 6_000_000]


def test_a_later_call_goes_on(server, home):
    server.files['/x.pth'] = content = saved(WEIGHTS)
    path = str(home / 'x.pth')
    (home / 'x.part.pth').write_bytes(content[:1000])
    download(f'{server.url}/x.pth', path)
    assert Path(path).read_bytes() == content
    assert server.requests == [('/x.pth', 1000)]
    assert files_below(home) == {'x.pth'}


@pytest.mark.parametrize('with_ranges', [False, True])
def test_a_part_that_cannot_be_continued_is_replaced(server, home, with_ranges):
    server.files['/x.pth'] = content = saved(WEIGHTS)
    server.with_ranges = with_ranges
    (home / 'x.part.pth').write_bytes(b'?' * (len(content) if with_ranges else 1000))
    download(f'{server.url}/x.pth', str(home / 'x.pth'))
    assert (home / 'x.pth').read_bytes() == content


def test_a_server_that_keeps_breaking_off(server, home):
    server.files['/x.pth'] = saved(WEIGHTS)
    server.breaks_after = 0
    with pytest.raises(OSError, match='broke off at 0 of'):
        download(f'{server.url}/x.pth', str(home / 'x.pth'))
    assert not (home / 'x.pth').exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\n<!DOCTYPE html><title>Sign in</title>', 'did not send a checkpoint but a web page'),
        (b'', 'did not send a checkpoint: checkpoint it is empty'),
        (saved(WEIGHTS)[:-1000], 'it is incomplete or damaged'),
        (b'{"error": "quota exceeded"}', 'it is not a checkpoint but a text'),
    ],
)
def test_what_is_not_a_checkpoint_is_not_kept(server, home, content, message):
    server.files['/x.pth'] = content
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(f'{server.url}/x.pth')
    assert files_below(home) == set()


def test_a_malicious_download_is_not_run_and_not_kept(server, home):
    folder = home / 'elsewhere'
    folder.mkdir()
    path = save_malicious(folder, 'among the weights', WEIGHTS, home / 'planted')
    server.files['/x.pth'] = Path(path).read_bytes()
    with pytest.raises(CheckpointError, match=r'it is refused: it asks for `os\.makedirs`'):
        find_checkpoint(f'{server.url}/x.pth')
    assert not (home / 'planted').exists()
    assert files_below(home) == {os.path.basename(path)}


def test_files_of_one_name_at_two_addresses_are_two(server, home):
    server.files |= {
        '/a/epoch_1.pth': saved({'a': torch.ones(1)}),
        '/b/epoch_1.pth': saved({'b': torch.ones(1)}),
    }
    paths = [find_checkpoint(f'{server.url}/{folder}/epoch_1.pth') for folder in 'ab']
    assert [list(torch.load(path, weights_only=True)) for path in paths] == [['a'], ['b']]


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        (
            'mmdat://dat_base_in1k_224',
            r'get it from http.* and put it into .*checkpoints or .*hub/checkpoints as dat_base',
        ),
        ('mmdat://dat_tiny_in1k_2242', "did you mean 'dat_tiny_in1k_224'"),
        ('mmdat://resnet50', 'not a released checkpoint'),
        ('ftp://host/x.pth', 'neither a path nor'),
    ],
)
def test_without_a_network_the_error_says_where_and_whither(home, monkeypatch, checkpoint, message):
    monkeypatch.setattr('mmdat.released._TSINGHUA', 'http://127.0.0.1:9/f/{}/?dl=1')
    with pytest.raises(CheckpointError, match=message) as info:
        find_checkpoint(checkpoint)
    assert '\n' not in str(info.value)


def test_processes_that_start_together_download_once(server, home, monkeypatch):
    server.files['/dat_tiny_in1k_224.pth'] = saved(WEIGHTS)
    monkeypatch.setenv('MMDAT_MIRROR', server.url)
    fork = multiprocessing.get_context('fork')
    processes = [fork.Process(target=find_checkpoint, args=('mmdat://dat_tiny_in1k_224',)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(server.requests) == 1
    assert files_below(home) == {'dat_tiny_in1k_224.pth'}


def known_sha256(monkeypatch, content):
    release = dataclasses.replace(RELEASED['dat_tiny_in1k_224'], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(RELEASED, release.name, release)


def test_released_files_are_what_they_were(server, home, monkeypatch):
    server.files['/dat_tiny_in1k_224.pth'] = content = saved(WEIGHTS)
    monkeypatch.setenv('MMDAT_MIRROR', server.url)
    known_sha256(monkeypatch, content)
    path = find_checkpoint('mmdat://dat_tiny_in1k_224')
    assert find_checkpoint('mmdat://dat_tiny_in1k_224') == path


def test_released_files_that_are_others(server, home, monkeypatch):
    server.files['/dat_tiny_in1k_224.pth'] = saved({'a': torch.ones(1)})
    monkeypatch.setenv('MMDAT_MIRROR', server.url)
    known_sha256(monkeypatch, saved(WEIGHTS))
    for _ in range(2):  # as it is downloaded, and as it lies in the cache
        with pytest.raises(
            CheckpointError, match=r'dat_tiny_in1k_224\.pth is not the released .* SHA-256 is'
        ):
            find_checkpoint('mmdat://dat_tiny_in1k_224')
    path = f'{cache_folder()}/dat_tiny_in1k_224.pth'
    assert find_checkpoint(path) == path


class FakeHub:
    def __init__(self, path):
        self.path, self.calls = str(path), []

    def hf_hub_download(self, repo_id, filename, revision=None):
        self.calls.append((repo_id, filename, revision))
        if filename == 'none.pth':
            raise ValueError('404 Client Error.\n\nEntry not found')
        return self.path


def test_files_of_the_hugging_face_hub(home, monkeypatch):
    torch.save(WEIGHTS, home / 'x.pth')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub := FakeHub(home / 'x.pth'))
    assert find_checkpoint('hf://org/repo/x.pth') == str(home / 'x.pth')
    find_checkpoint('hf://org/repo@v1.0/weights/x.pth')
    assert hub.calls == [('org/repo', 'x.pth', None), ('org/repo', 'weights/x.pth', 'v1.0')]
    with pytest.raises(
        CheckpointError, match=r'downloaded \(ValueError: 404 Client Error\. Entry not found\)$'
    ):
        find_checkpoint('hf://org/repo/none.pth')
    with pytest.raises(CheckpointError, match='must be hf://ORG/REPO/FILE'):
        find_checkpoint('hf://org/x.pth')
    assert list(CheckpointLoader.load_checkpoint('hf://org/repo/x.pth')['state_dict']) == list(WEIGHTS)


def test_the_hugging_face_hub_is_optional(home, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(CheckpointError, match=r'`pip install huggingface_hub`.*co/org/repo/tree/main, and'):
        find_checkpoint('hf://org/repo/x.pth')
