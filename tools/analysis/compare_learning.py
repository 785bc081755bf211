from argparse import ArgumentParser
from pathlib import Path

from mmdat.analysis import learning


def main():
    parser = ArgumentParser(
        description='Train narrow DAT and Swin side by side from scratch, and compare them'
    )
    parser.add_argument(
        '--data', type=Path, default=Path('data'), help='folder that holds flowers5 and camvid'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/learning'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--picture', type=Path, default=Path('docs/learning.png'))
    args = parser.parse_args()

    learning.run(Path(__file__).resolve().parents[1] / 'train.py', args.data, args.work_dir, args.seeds)
    curves = learning.read_curves(args.work_dir)
    learning.draw(curves, args.picture)
    print(learning.to_markdown(curves))


if __name__ == '__main__':
    main()
