"""How the processes of a run end: all together, at once, and with the right exit code."""

import ctypes
import logging
import os
import signal
import sys
from typing import NoReturn

import torch.distributed as dist

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_launcher() -> None:
    """Ties this process to the launcher that started it, and those that it forks, data loaders', to itself.

    torchrun ends its processes when it is interrupted or when one of them fails, but not when it is killed;
    and of a process that is killed the data loaders' workers stay for seconds. On Linux the kernel sees to
    it, elsewhere nothing is changed. A process without a launcher outlives the shell that started it.
    """
    if sys.platform != 'linux':
        return
    os.register_at_fork(after_in_child=_die_with_parent)
    # `tools/dist_run.sh` gives its process id, which torchrun takes over; not for children of this process
    launcher = os.environ.pop('MMDAT_LAUNCHER', None)
    if launcher or 'TORCHELASTIC_RUN_ID' in os.environ:
        _die_with_parent()
        if launcher and os.getppid() != int(launcher):
            os._exit(1)  # it was killed before
        # torchrun passes Ctrl-C on. Python would hear it after the collective in which it may be waiting.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
