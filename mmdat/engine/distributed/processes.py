"""How the processes of a run end: all together, at once, and with the right exit code."""

import ctypes
import logging
import os
import signal
import sys
from typing import NoReturn

import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import all_gather_object

from ..errors import PreflightError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_launcher() -> None:
    """Ties this process to the launcher that started it, and those that it forks, data loaders', to itself.

    torchrun ends its processes when it is interrupted or when one of them fails, but not when it is killed;
    and of a process that is killed the data loaders' workers stay for seconds. On Linux the kernel sees to
    it, elsewhere nothing is changed. A process without a launcher outlives the shell that started it.
    """
    if sys.platform != 'linux':
        return
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    os.register_at_fork(after_in_child=die_with_parent)
    # The process id of `tools/dist_run.sh`, which torchrun takes over. Not for children of this process.
    launcher = os.environ.pop('MMDAT_LAUNCHER', None)
    if launcher or 'TORCHELASTIC_RUN_ID' in os.environ:
        die_with_parent()
        if launcher and os.getppid() != int(launcher):
            os._exit(1)  # it was killed before
        # torchrun passes Ctrl-C on. Python would hear it after the collective in which it may be waiting.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_start(cfg: Config) -> None:
    """Makes sure that all processes of a run start from the same checkpoint.

    On nodes that share no disk, only the first has the checkpoints: the others would start anew, and train
    another model, without a word.

    Raises:
        PreflightError: On all processes.
    """
    checkpoint = cfg.get('load_from')
    names = all_gather_object(os.path.basename(checkpoint) if checkpoint else 'no checkpoint')
    for rank, name in enumerate(names):
        if name != names[0]:
            raise PreflightError(
                f'process {rank} would start from {name}, and process 0 from {names[0]}: put the work '
                f'directory ({cfg.work_dir}) on a disk that all nodes share, or copy its checkpoints to each '
                'of them; --no-resume starts anew'
            )


def end_in_group(code: int) -> NoReturn:
    """Ends a process of a process group at once, without what Python does at exit.

    There gloo's threads may still let go of tensors, which aborts a run that has succeeded ("terminate called
    without an active exception"), even if the group was destroyed; and a process that has failed would wait
    for collectives that no other process joins.
    """
    if code == 0:
        dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
