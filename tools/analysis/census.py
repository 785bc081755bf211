import torch

from mmdat.analysis.block_census import blocks_to_markdown, build_backbone
from mmdat.engine import Overrides, Parser, load_config, run_tool


def main():
    parser = Parser(
        description='What a training step costs on a GPU, computed without one: kernels, bytes, waits, memory'
    )
    parser.add_argument('config', nargs='+', help='config files')
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'), default=(800, 1344))
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--amp', choices=['float16', 'bfloat16', 'none'], default='float16')
    parser.add_argument('--blocks', action='store_true', help='the kinds of blocks of the backbone alone')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()

    amp = None if args.amp == 'none' else getattr(torch, args.amp)
    for config in args.config:
        cfg = load_config(config, args.cfg_options)
        print(blocks_to_markdown(build_backbone(cfg), args.size, args.batch, amp))


if __name__ == '__main__':
    run_tool(main)
