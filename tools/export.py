from mmdat.apis import init_model
from mmdat.benchmarks.exported import benchmark_exported
from mmdat.engine import Overrides, Parser, add_trust_argument, load_trained_config, run_tool
from mmdat.export import check_target, export_model


def main():
    parser = Parser(
        description='Export a model to ONNX or torch.export, compared with PyTorch before it is kept'
    )
    parser.add_argument('config', help='config file, or mmdat::NAME')
    parser.add_argument('checkpoint', help='path, http(s):// address, mmdat://NAME or hf://ORG/REPO/FILE')
    parser.add_argument('--out', required=True, help='MODEL.onnx, or MODEL.pt2 for torch.export')
    parser.add_argument('--backbone-only', action='store_true', help='export the backbone, of any model')
    parser.add_argument(
        '--shape', nargs=2, type=int, metavar=('H', 'W'), help="pixels; by default the config's"
    )
    parser.add_argument('--dynamic', action='store_true', help='images of every size')
    parser.add_argument(
        '--grid-sample', action='store_true', help='sample by GridSample in ONNX, instead of gathers'
    )
    parser.add_argument('--images', nargs='+', default=[], help='to compare with; by default drawn ones')
    parser.add_argument('--benchmark', action='store_true', help='measure latency beside PyTorch, on the CPU')
    add_trust_argument(parser)
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='settings to override')
    args = parser.parse_args()

    check_target(args.out)
    cfg = load_trained_config(args.config, args.checkpoint, args.cfg_options)
    model = init_model(cfg, args.checkpoint, 'cpu')
    shape = tuple(args.shape) if args.shape else None
    print(
        export_model(model, args.out, args.images, shape, args.dynamic, args.backbone_only, args.grid_sample)
    )
    if args.benchmark:
        print(benchmark_exported(model, args.out, shape, args.backbone_only))


if __name__ == '__main__':
    run_tool(main)
