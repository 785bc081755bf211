from mmdat.architectures import ARCHITECTURES, GENERATIONS
from mmdat.engine import Parser, add_trust_argument, build_model, convert_checkpoint, run_tool


def main():
    parser = Parser(description="Write a clean checkpoint: weights under today's names, nothing else")
    parser.add_argument('src', help='checkpoint file, or mmdat://NAME')
    parser.add_argument('dst', help='file to write; .safetensors for that format')
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument('--config', help='config of the whole model, to check neck and head and resize tables')
    of.add_argument('--arch', choices=ARCHITECTURES, help='of the backbone, with the settings of the paper')
    parser.add_argument('--generation', choices=GENERATIONS, help='for files that do not tell')
    add_trust_argument(parser)
    args = parser.parse_args()
    model = build_model(args.config) if args.config else args.arch
    print(convert_checkpoint(args.src, args.dst, model, args.generation))


if __name__ == '__main__':
    run_tool(main)
