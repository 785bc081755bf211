from mmdat.engine import (
    add_amp_argument,
    base_parser,
    build_runner,
    enable_amp,
    follow_data,
    in_one_line,
    load_config,
    make_deterministic,
    preflight,
    resume,
    run_tool,
    say_once,
    summarize,
)


@in_one_line()
def main():
    parser = base_parser('Train a model of any task')
    add_amp_argument(parser)
    parser.add_argument(
        '--compile', action='store_true', help='torch.compile of the backbone, block by block, for any size'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the real batch size, all GPUs together',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        default='auto',
        help='go on from this checkpoint; by default from the latest in the work directory, if any',
    )
    parser.add_argument('--no-resume', action='store_const', const=None, dest='resume', help='start anew')
    args = parser.parse_args()

    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    follow_data(cfg, training=True)
    if args.amp:
        enable_amp(cfg, args.amp)
    if args.compile:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='CompileBlocksHook')]
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    if args.deterministic:
        make_deterministic(cfg)
    resume(cfg, args.resume)
    if args.check:
        say_once(summarize(cfg, training=True))
        return
    preflight(cfg, training=True)
    if args.preflight:
        return
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(main)
