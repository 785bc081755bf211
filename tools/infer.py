import sys

from mmdat.engine import (
    Overrides,
    Parser,
    add_trust_argument,
    infer_files,
    load_trained_config,
    positive,
    run_tool,
    share,
)
from mmdat.spelling import counted


def main():
    parser = Parser(description='Predict what is in images, for detectors, segmentors and classifiers')
    parser.add_argument('config', help='config file, or mmdat::NAME')
    parser.add_argument('checkpoint', help='path, http(s):// address, mmdat://NAME or hf://ORG/REPO/FILE')
    parser.add_argument('inputs', nargs='+', metavar='input', help="images, folders, patterns like '*.jpg'")
    parser.add_argument(
        '--out', required=True, help='folder for pictures/, predictions/ and predictions.json'
    )
    parser.add_argument('--recursive', action='store_true', help='take the images of sub-folders, too')
    parser.add_argument('--device', help='such as cpu or cuda:1; by default a GPU if there is one')
    parser.add_argument('--batch-size', type=positive, default=1, help='images at a time')
    parser.add_argument(
        '--score-thr',
        type=share,
        default=0.3,
        help='lowest score of objects in pictures, for detectors; the files have all',
    )
    parser.add_argument('--top-k', type=positive, default=5, help='classes of an image, for classifiers')
    parser.add_argument('--no-pictures', action='store_true', help='write predictions only')
    add_trust_argument(parser)
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()

    cfg = load_trained_config(args.config, args.checkpoint, args.cfg_options)
    done, failed = infer_files(
        cfg,
        args.checkpoint,
        args.inputs,
        args.out,
        device=args.device,
        batch_size=args.batch_size,
        recursive=args.recursive,
        pictures=not args.no_pictures,
        score_thr=args.score_thr,
        top_k=args.top_k,
    )
    print(f'{counted(done, "image")} done, {failed} failed: {args.out}')
    if failed:
        sys.exit(1)


if __name__ == '__main__':
    run_tool(main)
