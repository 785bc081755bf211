from pathlib import Path

import cv2
import torch

from mmdat.engine import Overrides, Parser, add_trust_argument, load_config, run_tool
from mmdat.visualization import KeyPointPainter


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
    paint = KeyPointPainter(cfg, args.checkpoint, args.device, args.predictions)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for image in args.images:
        out = out_dir / f'{Path(image).stem}.jpg'
        cv2.imwrite(str(out), paint(image))
        print(out)


if __name__ == '__main__':
    run_tool(main)
