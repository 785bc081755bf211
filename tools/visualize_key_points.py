from mmdat.engine import (
    Overrides,
    Parser,
    add_trust_argument,
    load_trained_config,
    report_files,
    run_tool,
)
from mmdat.input_files import find_images
from mmdat.visualization import KeyPointPainter, paint_files


def main():
    parser = Parser(description='Draw where deformable attention samples its keys')
    parser.add_argument('config', help='config of a model with a DAT backbone: file, or mmdat::NAME')
    parser.add_argument('checkpoint', help='path, http(s):// address, mmdat://NAME or hf://ORG/REPO/FILE')
    parser.add_argument('images', nargs='+', metavar='image', help="images, folders, patterns like '*.jpg'")
    parser.add_argument('--recursive', action='store_true', help='take the images of sub-folders, too')
    parser.add_argument('--out-dir', default='key_points', help='where pictures go')
    parser.add_argument('--predictions', action='store_true', help="add the model's predictions")
    parser.add_argument('--device', help='such as cpu or cuda:1; by default a GPU if there is one')
    add_trust_argument(parser)
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()

    images, problems = find_images(args.images, args.recursive, but=args.out_dir)
    cfg = load_trained_config(args.config, args.checkpoint, args.cfg_options)
    paint = KeyPointPainter(cfg, args.checkpoint, args.device, args.predictions)
    report_files(paint_files(paint, images, args.out_dir, problems))


if __name__ == '__main__':
    run_tool(main)
