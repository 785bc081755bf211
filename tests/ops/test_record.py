import json
import logging
import multiprocessing

import pytest

from mmdat.ops.record import Record


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'mmdat'


def test_values_stay():
    assert Record('a').get('x') is None
    Record('a').put('x', [1, 2])
    Record('a').put('y', 'z')
    assert Record('a').get('x') == [1, 2]
    assert Record('a').get('y') == 'z'
    assert Record('b').get('x') is None


def _put(number):
    for i in range(5):
        Record('shared').put(f'{number} {i}', number)


def test_several_processes_lose_nothing(cache):
    with multiprocessing.get_context('fork').Pool(4) as pool:
        pool.map(_put, range(4))
    values = json.loads((cache / 'shared.json').read_text())
    assert values == {f'{number} {i}': number for number in range(4) for i in range(5)}
    assert not list(cache.glob('*.part'))


def test_a_folder_that_cannot_be_written_is_no_error(cache, caplog):
    cache.write_text('a file')
    with caplog.at_level(logging.WARNING, 'mmdat'):
        Record('a').put('x', 1)
    assert Record('a').get('x') is None
    assert len(caplog.records) == 1
    assert 'cannot be written' in caplog.text
