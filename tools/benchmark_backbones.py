import argparse

import torch

from mmdat.benchmarks.backbones import benchmark_backbones
from mmdat.engine import run_tool


def main():
    parser = argparse.ArgumentParser(
        description='DAT-T against the Swin-T of mmdet, torchvision and timm, taking turns in one process'
    )
    parser.add_argument('--profile', action='store_true', help='add what the parts of DAT take')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, help='of the CPU; by default all')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(benchmark_backbones(repeats=args.repeats, profile=args.profile))


if __name__ == '__main__':
    run_tool(main)
