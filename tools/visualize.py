import torch

from mmdat.engine import (
    Overrides,
    Parser,
    add_trust_argument,
    follow_data,
    load_config,
    report_files,
    run_tool,
)
from mmdat.visualization import PicturePainter, ViewedModel, paint_files
from mmdat.visualization.pictures import KINDS


def main():
    parser = Parser(description='Draw what DAT looks at: sampled keys, the most important keys, attention')
    parser.add_argument('config', help='config file of a model with a DAT backbone')
    parser.add_argument('checkpoint', help='checkpoint of the model')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument(
        '--what', nargs='+', choices=KINDS, default=KINDS, help='which pictures, by default all'
    )
    parser.add_argument('--out', default='pictures', help='where pictures go')
    parser.add_argument(
        '--query',
        nargs=2,
        type=float,
        action='append',
        default=[],
        metavar=('X', 'Y'),
        help='pixel of the image whose attention is drawn, may be given several times; by default the '
        'centres of the best three predictions, the largest three segments, or the centre of the image',
    )
    parser.add_argument('--top-k', type=int, help='how many keys; by default 100 for keys, 30 for attention')
    parser.add_argument(
        '--by-head', action='store_true', help='attention of each head, not the mean over heads'
    )
    parser.add_argument('--layer', help='deformable attention to look at; by default the last')
    parser.add_argument('--swin-config', help='config of a model with Swin, whose attention is drawn beside')
    parser.add_argument('--swin-checkpoint', help='its checkpoint')
    parser.add_argument('--predictions', action='store_true', help="add the model's predictions")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add_trust_argument(parser)
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()
    if (args.swin_config is None) != (args.swin_checkpoint is None):
        parser.error('--swin-config and --swin-checkpoint belong together')
    if args.top_k is not None and args.top_k < 1:
        parser.error(f'--top-k must be at least 1, got {args.top_k}')

    cfg = load_config(args.config, args.cfg_options)
    cfg.load_from = args.checkpoint
    follow_data(cfg, training=False)
    subject = ViewedModel.load(cfg, args.checkpoint, args.device)
    swin = None
    if args.swin_config:
        swin = ViewedModel.load(load_config(args.swin_config), args.swin_checkpoint, args.device)
    paint = PicturePainter(
        subject, args.what, args.query, args.predictions, args.top_k, args.by_head, args.layer, swin
    )
    report_files(paint_files(paint, args.images, args.out))


if __name__ == '__main__':
    run_tool(main)
