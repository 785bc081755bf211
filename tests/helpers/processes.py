"""Processes that train together, over gloo, on this machine."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .training import ROOT, free_port

# What trainings import, which takes seconds.
PRELOADED = ['mmdat.engine']
PRELOADED += [
    f'{library}.{part}' for library in ('mmdet', 'mmseg') for part in ('engine', 'evaluation', 'models')
]


def run_together(function: Callable, world_size: int, folder: Path, *args, **kwargs) -> list:
    """What `function(*args, **kwargs)` returns in each of `world_size` processes of a launcher.

    They are forked from one server, which imports OpenMMLab once, and so must find the function in a module
    of `tests/helpers`. Results go through files in `folder`. A tool ends its process without one: `None`.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [
        context.Process(target=_run, args=(function, rank, world_size, port, folder, args, kwargs))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert not any(codes), f'exit codes {codes}, see above'
    results = [folder / f'{rank}.pth' for rank in range(world_size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in results]


def _run(function: Callable, rank: int, world_size: int, port: int, folder: Path, args, kwargs) -> None:
    settings = dict(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, MASTER_ADDR='127.0.0.1', MASTER_PORT=port
    )
    os.environ.update({key: str(value) for key, value in settings.items()})
    torch.set_num_threads(max(2 // world_size, 1))  # CI has two cores
    torch.save(function(*args, **kwargs), folder / f'{rank}.pth')
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_script(script: str, *arguments: str) -> None:
    """Runs a tool in this process, as the command line would."""
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name='__main__')
