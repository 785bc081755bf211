from argparse import ArgumentParser
from pathlib import Path

from mmengine.config import Config

from mmdat.analysis.flops import count_complexity, default_shape
from mmdat.analysis.paper import paper_rows, to_markdown
from mmdat.analysis.tables import markdown_table


def main():
    parser = ArgumentParser(description='Parameters and multiply-adds of a model, or of all of the paper')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('config', nargs='?', help='config file')
    what.add_argument('--paper', action='store_true', help="all rows of the paper's Tables 2 to 9")
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), help="default: the paper's")
    args = parser.parse_args()

    if args.paper:
        index = Path(__file__).resolve().parents[2] / 'model-index.yml'
        print(to_markdown(list(paper_rows(index))))
        return
    cfg = Config.fromfile(args.config)
    height, width = args.shape or default_shape(cfg)
    counts = count_complexity(cfg, (height, width))
    rows = [(part, f'{c.flops / 1e9:.2f}', f'{c.parameters / 1e6:.2f}') for part, c in counts.items()]
    print(markdown_table((f'{height} x {width}', 'GFLOPs', 'M parameters'), rows))


if __name__ == '__main__':
    main()
