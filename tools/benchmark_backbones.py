import torch

from mmdat.benchmarks.backbones import benchmark_backbones
from mmdat.benchmarks.gpu_backbones import benchmark_gpu_backbones
from mmdat.benchmarks.timing import checked_device
from mmdat.engine import Parser, run_tool

DTYPES = ('bfloat16', 'float16')


def main():
    parser = Parser(
        description='DAT-T against the Swin-T of mmdet, torchvision and timm, taking turns in one process'
    )
    parser.add_argument('--profile', action='store_true', help='add what the parts of DAT take (on CPUs)')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, help='of the CPU; by default all')
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='by default a GPU if there is one, where models run under autocast, DAT++-T among them',
    )
    parser.add_argument('--dtype', choices=DTYPES, default=DTYPES[0], help='of autocast on GPUs, %(default)s')
    parser.add_argument('--no-compile', action='store_true', help='do not try torch.compile on GPUs')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = checked_device(args.device)
    if device.type == 'cpu':
        print(benchmark_backbones(repeats=args.repeats, profile=args.profile))
    else:
        dtype, compiled = getattr(torch, args.dtype), not args.no_compile
        print(benchmark_gpu_backbones(device, repeats=args.repeats, dtype=dtype, compiled=compiled))


if __name__ == '__main__':
    run_tool(main)
