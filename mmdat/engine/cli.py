import os
import sys
import traceback
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable

from mmengine.config import DictAction
from mmengine.dist import is_distributed

from ..checkpoint import CheckpointError, trust_checkpoints
from .preflight import PreflightError
from .processes import end_in_group, end_with_launcher


def base_parser(description: str) -> ArgumentParser:
    """The arguments that training and testing share, as OpenMMLab's tools have them."""
    parser = ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, as key.sub=value; data_root=DIR moves the whole data set',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--check', action='store_true', help='check libraries, files and data, and stop before the run'
    )
    add_trust_argument(parser)
    # torch.distributed.launch passes this beside the environment variable that MMEngine reads
    parser.add_argument('--local_rank', '--local-rank', help=SUPPRESS)
    return parser


def add_trust_argument(parser: ArgumentParser) -> None:
    """`--trust-checkpoint`, which takes effect as it is read."""

    class Trust(Action):
        def __call__(self, *_):
            trust_checkpoints()

    parser.add_argument(
        '--trust-checkpoint',
        nargs=0,
        action=Trust,
        help='read checkpoints even if they can run code; for files of which you know and trust the maker',
    )


def run_tool(main: Callable[[], None]) -> None:
    """Runs a tool, which then leaves no process behind.

    What the user can mend is said in one line, without a traceback: before the processes of a run have met,
    by one process of each machine, because all of them stop for the same reason.
    """
    end_with_launcher()
    code = 0
    try:
        main()
    except (PreflightError, CheckpointError) as error:
        if os.environ.get('LOCAL_RANK', '0') == '0' or is_distributed():
            print(f'error: {error}', file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130  # as the shell counts it, without a traceback
    except Exception:
        if not is_distributed():
            raise
        traceback.print_exc()
        code = 1
    if is_distributed():
        end_in_group(code)
    if code:
        sys.exit(code)
