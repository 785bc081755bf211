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
from mmdat.visualization import KeyPointPainter, paint_files


def main():
    parser = Parser(description='Draw where deformable attention samples its keys')
    parser.add_argument('config', help='config file of a model with a DAT backbone')
    parser.add_argument('checkpoint', help='checkpoint of the model')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--out-dir', default='key_points', help='where pictures go')
    parser.add_argument('--predictions', action='store_true', help="add the model's predictions")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add_trust_argument(parser)
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()

    cfg = load_config(args.config, args.cfg_options)
    cfg.load_from = args.checkpoint
    follow_data(cfg, training=False)
    paint = KeyPointPainter(cfg, args.checkpoint, args.device, args.predictions)
    report_files(paint_files(paint, args.images, args.out_dir))


if __name__ == '__main__':
    run_tool(main)
