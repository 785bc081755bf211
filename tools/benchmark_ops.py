import torch

from mmdat.benchmarks.ops import GPU_SHAPES, SHAPES, benchmark_beside_sdpa, benchmark_ops
from mmdat.benchmarks.timing import checked_device
from mmdat.engine import Parser, run_tool
from mmdat.ops.deformable.backends import BACKENDS, ladder

DTYPES = ('bfloat16', 'float16', 'float32')


def main():
    parser = Parser(
        description='The backends of deformable attention, taking turns with the reference in one process'
    )
    parser.add_argument(
        'backends',
        nargs='*',
        metavar='BACKEND',
        help=f'{", ".join(BACKENDS)}; by default all of the device',
    )
    names = [str(shape) for shape in (*SHAPES, *GPU_SHAPES)]
    parser.add_argument('--only', choices=names, metavar='SHAPE', help='; '.join(names))
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--threads', type=int, help='of the CPU; by default all')
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='by default a GPU if there is one, where errors are measured first, and SDPA beside',
    )
    parser.add_argument('--dtype', choices=DTYPES, default=DTYPES[0], help='on GPUs; by default %(default)s')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = checked_device(args.device)
    names = [backend.name for backend in ladder(device.type)]
    backends = args.backends or names
    if others := sorted(set(backends) - set(names)):
        parser.error(f'no backend of {device.type}: {", ".join(others)} (it has {", ".join(names)})')
    shapes = SHAPES if device.type == 'cpu' else GPU_SHAPES
    if args.only:
        shapes = tuple(shape for shape in dict.fromkeys((*SHAPES, *GPU_SHAPES)) if args.only == str(shape))
    if device.type == 'cpu':
        print(benchmark_ops(backends, shapes, args.repeats))
    else:
        print(benchmark_beside_sdpa(backends, shapes, device, getattr(torch, args.dtype), args.repeats))


if __name__ == '__main__':
    run_tool(main)
