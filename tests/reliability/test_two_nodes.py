"""Two launchers, as on two machines, train together what two processes of one machine train."""

import json
import subprocess
from pathlib import Path

import pytest
from helpers.training import free_port, start_tool, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def full(trials):
    if not trials(0, 1):
        pytest.skip('runs with --full')


def start(
    monkeypatch, folder: Path, nodes: int, max_epochs: int = 1, **variables: str
) -> list[subprocess.Popen]:
    """Starts the launcher of each node, with as many processes as make two in all."""
    if not (config := folder / 'small.py').exists():
        write_config(folder)
    command = ('bash', 'tools/dist_train.sh', str(config), str(2 // nodes), '--work-dir', f'{folder}/work')
    port = free_port()
    launchers = []
    for node in range(nodes):
        for name, value in (variables | dict(NNODES=str(nodes), NODE_RANK=str(node))).items():
            monkeypatch.setenv(name, value)
        launchers.append(
            start_tool(folder, *command, options=(f'train_cfg.max_epochs={max_epochs}',), port=port)
        )
    return launchers


def finish(launcher: subprocess.Popen) -> tuple[int, str]:
    output, _ = launcher.communicate()
    return launcher.returncode, output


def losses(folder: Path) -> list[float]:
    (path,) = folder.glob('work/*/vis_data/scalars.json')
    return [entry['loss'] for entry in map(json.loads, path.read_text().splitlines()) if 'loss' in entry]


def test_two_nodes_train_what_one_trains(tmp_path, monkeypatch):
    one, two = tmp_path / 'one', tmp_path / 'two'
    for folder in (one, two):
        folder.mkdir()
    for launcher in [*start(monkeypatch, one, 1), *start(monkeypatch, two, 2)]:
        code, output = finish(launcher)
        assert code == 0, output[-5000:]
    assert 'Epoch(train)' not in output  # the second node's; the first process of all has the log
    assert len(losses(two)) == 2
    assert losses(two) == losses(one)


def test_a_node_that_does_not_come(tmp_path, monkeypatch):
    first, second = start(monkeypatch, tmp_path, 2, RDZV_TIMEOUT='20')
    second.kill()
    code, output = finish(first)
    assert code == 1
    assert 'node 0 of 2: meeting the others at 127.0.0.1:' in output
    assert '1/2 clients joined' in output


def test_a_node_that_is_lost(tmp_path, monkeypatch):
    first, second = start(monkeypatch, tmp_path, 2, max_epochs=100000)
    for line in first.stdout:
        if 'Epoch(train)' in line:
            break
    second.kill()
    code, output = finish(first)
    assert code == 1, output[-5000:]
