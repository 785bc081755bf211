import argparse

from mmdat.benchmarks.detectors import benchmark_detectors
from mmdat.engine import run_tool


def main():
    parser = argparse.ArgumentParser(
        description='Time and memory of detectors on a real image, taking turns in one process'
    )
    parser.add_argument('configs', nargs='+', help='config files, or LIBRARY::CONFIG of an installed one')
    parser.add_argument('--data-root', default='data/coco', help='folder of COCO')
    parser.add_argument('--index', type=int, default=0, help='which training image')
    parser.add_argument('--scale', type=int, nargs=2, default=(1333, 800), metavar=('LONG', 'SHORT'))
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    print(benchmark_detectors(args.configs, args.data_root, args.index, tuple(args.scale), args.repeats))


if __name__ == '__main__':
    run_tool(main)
