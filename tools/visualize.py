from mmdat.engine import (
    Overrides,
    Parser,
    add_trust_argument,
    load_config,
    load_trained_config,
    positive,
    report_files,
    run_tool,
)
from mmdat.input_files import find_images
from mmdat.visualization import PicturePainter, ViewedModel, paint_files
from mmdat.visualization.pictures import KINDS


def main():
    parser = Parser(description='Draw what DAT looks at: sampled keys, the most important keys, attention')
    parser.add_argument('config', help='config of a model with a DAT backbone: file, or mmdat::NAME')
    parser.add_argument('checkpoint', help='path, http(s):// address, mmdat://NAME or hf://ORG/REPO/FILE')
    parser.add_argument('images', nargs='+', metavar='image', help="images, folders, patterns like '*.jpg'")
    parser.add_argument('--recursive', action='store_true', help='take the images of sub-folders, too')
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
    parser.add_argument(
        '--top-k', type=positive, help='how many keys; by default 100 for keys, 30 for attention'
    )
    parser.add_argument(
        '--by-head', action='store_true', help='attention of each head, not the mean over heads'
    )
    parser.add_argument('--layer', help='deformable attention to look at; by default the last')
    parser.add_argument('--swin-config', help='config of a model with Swin, whose attention is drawn beside')
    parser.add_argument('--swin-checkpoint', help='its checkpoint')
    parser.add_argument('--predictions', action='store_true', help="add the model's predictions")
    parser.add_argument('--device', help='such as cpu or cuda:1; by default a GPU if there is one')
    add_trust_argument(parser)
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()
    if (args.swin_config is None) != (args.swin_checkpoint is None):
        parser.error('--swin-config and --swin-checkpoint belong together')

    images, problems = find_images(args.images, args.recursive, but=args.out)
    cfg = load_trained_config(args.config, args.checkpoint, args.cfg_options)
    subject = ViewedModel.load(cfg, args.checkpoint, args.device)
    swin = None
    if args.swin_config:
        swin = ViewedModel.load(load_config(args.swin_config), args.swin_checkpoint, args.device)
    paint = PicturePainter(
        subject, args.what, args.query, args.predictions, args.top_k, args.by_head, args.layer, swin
    )
    report_files(paint_files(paint, images, args.out, problems))


if __name__ == '__main__':
    run_tool(main)
