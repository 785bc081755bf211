from mmengine.logging import print_log

from mmdat.engine import (
    base_parser,
    build_runner,
    dump_predictions_to,
    enable_tta,
    enable_visualization,
    follow_data,
    in_one_line,
    load_config,
    make_deterministic,
    preflight,
    run_tool,
    say_once,
    summarize,
)


@in_one_line()
def main():
    parser = base_parser('Evaluate a checkpoint of any task')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='pickle file for all predictions')
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument('--show', action='store_true', help='show predictions on the screen')
    pictures.add_argument(
        '--show-dir', help='folder for pictures of predictions; with several processes, of those of the first'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which --show shows a picture, 0 until a key'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    args = parser.parse_args()

    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    cfg.load_from = args.checkpoint
    follow_data(cfg, training=False)
    if args.show or args.show_dir:
        enable_visualization(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        enable_tta(cfg)
    if args.deterministic:
        make_deterministic(cfg)
    if args.out:
        dump_predictions_to(cfg, args.out)
    if args.check:
        say_once(summarize(cfg, training=False))
        return
    preflight(cfg, training=False)
    if args.preflight:
        return
    build_runner(cfg).test()
    if args.show_dir:
        print_log(f'pictures are in {args.show_dir}', 'current')


if __name__ == '__main__':
    run_tool(main)
