import argparse

import torch

from mmdat.benchmarks.ops import SHAPES, benchmark_ops
from mmdat.engine import run_tool
from mmdat.ops.deformable.backends import BACKENDS


def main():
    parser = argparse.ArgumentParser(
        description='The backends of deformable attention, taking turns with the reference in one process'
    )
    parser.add_argument(
        'backends', nargs='*', default=list(BACKENDS), metavar='BACKEND', help=', '.join(BACKENDS)
    )
    names = [str(shape) for shape in SHAPES]
    parser.add_argument('--only', choices=names, metavar='SHAPE', help='; '.join(names))
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--threads', type=int, help='of the CPU; by default all')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = tuple(shape for shape in SHAPES if args.only in (None, str(shape)))
    print(benchmark_ops(list(args.backends), shapes, args.repeats))


if __name__ == '__main__':
    run_tool(main)
