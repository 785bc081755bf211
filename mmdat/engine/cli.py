import os
import re
import sys
import traceback
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import DictAction
from mmengine.dist import is_distributed

from ..checkpoint import trust_checkpoints
from ..errors import UserError
from ..spelling import did_you_mean
from .data_guard import BrokenDataError
from .distributed.processes import end_in_group, end_with_launcher
from .mixed_precision import AMP_DTYPES
from .saving import NO_ROOM

# A space with neither a separator nor a space beside it, and what stands for it while MMEngine parses.
_INNER_SPACE, _NO_SPACE = re.compile(r'(?<=[^\s,\[\]()]) (?=[^\s,\[\]()])'), '\0'
# Where launchers tell a process its number on its machine.
_LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK', 'RANK')


class Parser(ArgumentParser):
    """A parser that says in one line what is wrong with a command, with exit code 2."""

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        for i, (option, value) in enumerate(pairwise(args)):
            if option == '--amp' and value.endswith('.py'):  # argparse would take the config for its dtype
                args[i] = '--amp=auto'
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix('unrecognized arguments: ').split()[0]
        hint = (
            did_you_mean(unknown.partition('=')[0], self._option_string_actions) if unknown[0] == '-' else ''
        )
        self.exit(2, f'error: {message}{hint} (--help lists the options)\n')


def share(text: str) -> float:
    """The type of an argument that is a number from 0 to 1."""
    if not 0 <= (number := float(text)) <= 1:
        raise ArgumentTypeError(f'must lie between 0 and 1, got {text}')
    return number


def positive(text: str) -> int:
    """The type of an argument that is a whole number from 1 on."""
    if (number := int(text)) < 1:
        raise ArgumentTypeError(f'must be at least 1, got {text}')
    return number


class Overrides(DictAction):
    """`KEY=VALUE` for `--cfg-options`, as MMEngine reads it, but for spaces inside of values.

    MMEngine takes them out, of `data_root=my data` and `classes=traffic light,person`, too.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                raise ArgumentError(self, f'takes KEY=VALUE, got {value!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # of brackets that do not match
            raise ArgumentError(self, str(error)) from error

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        return _put_spaces(DictAction._parse_iterable(_INNER_SPACE.sub(_NO_SPACE, val)))


def _put_spaces(value: Any) -> Any:
    """The value with the spaces for which `_NO_SPACE` stands, in lists and tuples, too."""
    if isinstance(value, list | tuple):
        return type(value)(map(_put_spaces, value))
    return value.replace(_NO_SPACE, ' ') if isinstance(value, str) else value


def base_parser(description: str) -> ArgumentParser:
    """The arguments that training and testing share, as OpenMMLab's tools have them."""
    parser = Parser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Overrides,
        metavar='KEY=VALUE',
        help='settings to override, as key.sub=value; data_root=DIR moves the whole data set',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--check',
        action='store_true',
        help='check everything, load the data sets, say what would run, and stop',
    )
    parser.add_argument(
        '--preflight', action='store_true', help='only the quick checks that precede every run, and stop'
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


def add_amp_argument(parser: ArgumentParser) -> None:
    """`--amp [DTYPE]`: `args.amp` is the dtype, `'auto'` where none is named, `None` without the option."""
    parser.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        choices=['auto', *AMP_DTYPES],
        metavar='|'.join(AMP_DTYPES),
        help='mixed precision; by default bfloat16 on CPUs and on GPUs that compute in it, else float16 with '
        'a dynamic loss scale',
    )


def say_once(text: str) -> None:
    """Prints by one process of each machine."""
    if _is_first():
        print(text)


def report_files(results: Iterable[tuple[Path | None, str]]) -> None:
    """Prints the path of each file that was made, or why it was not; exit code 1 if one failed."""
    failed = False
    for path, error in results:
        if path is None:
            failed = True
            print(f'error: {error}', file=sys.stderr)
        else:
            print(path)
    if failed:
        sys.exit(1)


def _is_first() -> bool:
    return next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), '0') == '0'


def run_tool(main: Callable[[], None]) -> None:
    """Runs a tool, which then leaves no process behind.

    What the user can mend is said in one line: before the processes of a run have met, by one process of
    each machine, because all of them stop for the same reason. Tracebacks are shown before it where the
    environment variable `MMDAT_TRACEBACK` is 1.
    """
    end_with_launcher()
    code = 0
    try:
        main()
    except UserError as error:
        # what is wrong with a file, only the process knows that has read it
        if _is_first() or is_distributed() or isinstance(error, BrokenDataError):
            if os.environ.get('MMDAT_TRACEBACK') == '1':
                traceback.print_exception(error)
            print(f'error: {error}', file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130  # as the shell counts it, without a traceback
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            print(f'error: no room to write: {error}; make room, the same command goes on', file=sys.stderr)
        elif is_distributed():
            traceback.print_exc()
        else:
            raise
        code = 1
    if is_distributed():
        end_in_group(code)
    if code:
        sys.exit(code)
