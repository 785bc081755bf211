import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ..benchmarks.timing import checked_device, in_one_line
from ..errors import UserError
from ..ops.ladder import asked_for
from .environment import devices, variable
from .report import choices_section, correctness_section, environment_section, times_section
from .sweep import sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks this machine and prints a report; 1 if a check fails, and else 0."""
    parser = argparse.ArgumentParser(
        prog='python -m mmdat.check',
        description='Compares every backend that this machine has with the equations in float64, and prints '
        'a report to attach to an issue. The exit code is 1 if a check fails.',
    )
    parser.add_argument(
        '--quick', action='store_true', help='without torch.compile, times of small maps only'
    )
    parser.add_argument('--no-times', action='store_true', help='correctness only')
    parser.add_argument('--device', help='cpu, cuda or cuda:N; by default the CPU and a GPU of each kind')
    parser.add_argument('--out', type=Path, metavar='FILE', help='also write the report into a file')
    args = parser.parse_args(arguments)
    if args.out and (args.out.is_dir() or not args.out.absolute().parent.is_dir()):
        parser.error(f'--out needs a file in a folder that exists, got {args.out}')
    try:
        return int(_check(args))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


def _check(args: argparse.Namespace) -> bool:
    """Prints the report piece by piece as it grows, and says whether a check failed."""
    chosen = [checked_device(args.device)] if args.device else devices()
    try:
        asked_for()
    except ValueError as error:  # of a variable
        raise UserError(error) from error
    pieces = []

    def tell(piece: str) -> None:
        print(f'{piece}\n', flush=True)
        pieces.append(piece)
        if args.out:
            args.out.write_text('\n\n'.join(pieces) + '\n')

    def attempt(section: Callable[[], str]) -> int:
        """1 if the section itself fails: after some errors of a kernel a GPU does nothing any more."""
        try:
            tell(section())
        except Exception as error:
            tell(f'**{in_one_line(error)}**')
            return 1
        return 0

    tell('# mmdat check')
    failures = total = 0
    failures += attempt(environment_section)
    for device in chosen:
        failures += attempt(partial(choices_section, device))
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False
    # a kernel that the self-check refuses is looked at, too: what is wrong with it is what a report is for
    with variable('MMDAT_SELF_CHECK', '0'):
        for device in chosen:
            print(f'checking {device}', file=sys.stderr)
            outcomes = list(sweep(device, args.quick))
            failures += sum(bool(outcome.failures()) for outcome in outcomes)
            total += sum(not outcome.not_served for outcome in outcomes)
            tell(correctness_section(device, outcomes))
        if not args.no_times:
            for device in chosen:
                print(f'timing {device}', file=sys.stderr)
                failures += attempt(partial(times_section, device, args.quick))
    tell(f'**Of {total} checks {failures} failed.**' if failures else f'**All {total} checks passed.**')
    return bool(failures)


if __name__ == '__main__':
    sys.exit(main())
