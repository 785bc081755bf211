import os
import sys
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable

from mmengine.config import DictAction

from ..checkpoint import CheckpointError, trust_checkpoints
from .preflight import PreflightError


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
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='the same bits in each run on CPUs; on GPUs the gradients of grid_sample, interpolate and '
        'RoIAlign, for instance, are added up in any order still',
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
    """Runs a tool; what the user can mend is said in one line, by one process, without a traceback."""
    try:
        main()
    except (PreflightError, CheckpointError) as error:
        if os.environ.get('RANK', '0') == '0':
            print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)  # as the shell counts it, without a traceback
