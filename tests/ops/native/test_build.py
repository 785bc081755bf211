"""Compiling the kernels on machines with and without a compiler."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mmdat.ops.native import build, library


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where libraries go: an empty folder. There is one tiny source, `answer.cpp`."""
    source = tmp_path / 'csrc'
    source.mkdir()
    (source / 'answer.cpp').write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, 'SOURCES', source)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'mmdat'


def test_compiles_once_for_the_same_sources_and_flags(cache, monkeypatch):
    assert build.load_library('answer').answer() == 42
    (library,) = cache.glob('answer-*.so')
    monkeypatch.setenv('CXX', 'false')  # needed no more
    assert build.load_library('answer').answer() == 42

    monkeypatch.delenv('CXX')
    (build.SOURCES / 'answer.cpp').write_text('extern "C" int answer() { return ANSWER; }\n')
    monkeypatch.setenv('MMDAT_CXXFLAGS', '-DANSWER=43')
    assert build.load_library('answer').answer() == 43
    assert len(list(cache.glob('answer-*.so'))) == 2
    assert library.exists()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_without_a_compiler_it_says_so(cache, monkeypatch):
    monkeypatch.setenv('PATH', str(cache))
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(build.BuildError, match=r'no C\+\+ compiler: install g\+\+, or set CXX'):
        build.load_library('answer')


@pytest.mark.parametrize('compiler', ['no-such-compiler', 'false'])
def test_a_compiler_that_fails_is_named_and_leaves_nothing(cache, monkeypatch, compiler):
    monkeypatch.setenv('CXX', compiler)
    with pytest.raises(build.BuildError, match=compiler):
        build.load_library('answer')
    assert not list(cache.glob('answer-*.so'))


def test_errors_of_the_compiler_are_shown(cache):
    (build.SOURCES / 'answer.cpp').write_text('int answer() { return forty_two; }\n')
    with pytest.raises(build.BuildError, match='forty_two'):
        build.load_library('answer')


def test_a_folder_that_cannot_be_written_is_named(cache, monkeypatch):
    cache.write_text('a file')
    with pytest.raises(build.BuildError, match='cannot be kept or loaded'):
        build.load_library('answer')


def test_of_concurrent_processes_one_compiles(cache, tmp_path):
    compiler = tmp_path / 'compiler'
    compiler.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nsleep 0.5\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    program = f"""
        from pathlib import Path
        from mmdat.ops.native import build
        build.SOURCES = Path({str(build.SOURCES)!r})
        assert build.load_library('answer').answer() == 42
    """
    command = [sys.executable, '-c', textwrap.dedent(program)]
    env = {**os.environ, 'CXX': str(compiler), 'PYTHONPATH': str(Path(build.__file__).parents[3])}
    processes = [subprocess.Popen(command, env=env) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / 'runs').read_text() == 'run\n'


def test_a_compile_that_was_killed_leaves_nothing_to_the_next(cache, tmp_path, monkeypatch):
    """Killed with all that it had written: a part of the library."""
    compiler = tmp_path / 'compiler'
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho part > "$2"\nkill -9 $PPID\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    child = os.fork()
    if child == 0:
        build.load_library('answer')
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(cache.glob('*.part'))

    monkeypatch.delenv('CXX')
    assert build.load_library('answer').answer() == 42
    assert {path.suffix for path in cache.iterdir()} == {'.so', '.lock'}


def test_a_process_that_holds_the_lock_for_ever_does_not_hang_others(cache, monkeypatch, caplog):
    monkeypatch.setattr(build, 'PATIENCE', 0.2)
    cache.mkdir()
    name = f'answer-{build._fingerprint(list(build.FLAGS))}'
    with open(cache / f'{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel, obstacle = library.load_kernel('answer', ctypes.Structure)
    assert kernel is None
    assert f'{name}.lock for 0.2 s' in obstacle
    waiting, slower = (record.getMessage() for record in caplog.records)
    assert (
        waiting == f'Waiting for another process that compiles the CPU kernel and holds {cache / name}.lock'
    )
    assert slower == f'Attention is slower than it could be on this CPU: {obstacle}'


def test_a_compiler_that_hangs_is_ended(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(build, 'PATIENCE', 0.2)
    compiler = tmp_path / 'compiler'
    compiler.write_text('#!/bin/sh\nexec sleep 60\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    with pytest.raises(build.BuildError, match=r'did not end in 0\.2 s'):
        build.load_library('answer')


def test_without_the_kernels_the_others_serve_and_one_line_says_so(tmp_path):
    program = """
        import torch
        from mmdat import DAT
        torch.manual_seed(0)
        arch = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 1, 1))
        model = DAT(arch, block_patterns=list('LSDD')).eval()
        for _ in range(2):
            outs = model(torch.ones(2, 3, 320, 320))
        print(len(outs), all(out.isfinite().all() for out in outs))
    """
    env = {
        **os.environ,
        'CXX': 'no-such-compiler',
        'XDG_CACHE_HOME': str(tmp_path),
        'PYTHONPATH': str(Path(build.__file__).parents[3]),
    }
    command = [sys.executable, '-c', textwrap.dedent(program)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.stdout == '4 True\n', result.stderr
    assert result.stderr.count('no-such-compiler') == 1
