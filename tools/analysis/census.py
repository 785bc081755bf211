from pathlib import Path

import torch

from mmdat.analysis.census import batch_size, build_backbone, usual_canvas
from mmdat.analysis.census.tables import (
    blocks_to_markdown,
    count_steps,
    places_to_markdown,
    replace_table,
    steps_to_markdown,
)
from mmdat.engine import Overrides, Parser, load_config, run_tool


def main():
    parser = Parser(
        description='What a training step costs on a GPU, computed without one: kernels, bytes, memory, waits'
    )
    parser.add_argument('config', nargs='+', help='config files')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='of the batch; by default as the pipeline makes it, usually and at most',
    )
    parser.add_argument('--batch', type=int, help="images of a step; by default the config's")
    parser.add_argument('--amp', choices=['float16', 'bfloat16', 'none'], default='float16')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--blocks', action='store_true', help='each kind of block of the backbone instead')
    what.add_argument('--places', action='store_true', help='where the host waits and copies instead')
    parser.add_argument('--jobs', type=int, default=2, help='configs at a time')
    parser.add_argument('--into', type=Path, help='file of Markdown whose table of this kind is replaced')
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()

    amp = None if args.amp == 'none' else getattr(torch, args.amp)
    configs = {path: load_config(path, args.cfg_options) for path in args.config}
    size = args.size and tuple(args.size)
    if args.blocks:
        kind, tables = (
            'blocks',
            [
                blocks_to_markdown(
                    build_backbone(cfg), size or usual_canvas(cfg), args.batch or batch_size(cfg), amp, path
                )
                for path, cfg in configs.items()
            ],
        )
    else:
        steps = list(count_steps(configs, amp, size, args.batch, args.jobs))
        kind = 'places' if args.places else 'steps'
        tables = list(map(places_to_markdown, steps)) if args.places else [steps_to_markdown(steps)]
    text = '\n\n'.join(tables)
    if args.into is None:
        print(text)
    else:
        replace_table(args.into, kind, text)


if __name__ == '__main__':
    run_tool(main)
