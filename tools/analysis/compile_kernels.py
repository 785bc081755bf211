from argparse import ArgumentParser

from mmdat.analysis.gpu_kernels import (
    SHARED_MEMORY,
    default_cases,
    table_of_cases,
    table_of_sampling,
    versions,
)


def main():
    names = {f'{major}{minor}': (major, minor) for major, minor in SHARED_MEMORY}
    parser = ArgumentParser(description='Compile the Triton kernels for cards that need not be here')
    parser.add_argument('cards', nargs='+', choices=names, metavar='CARD', help=f'of {", ".join(names)}')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--others', action='store_true', help='all cases but bfloat16 with heads of 32')
    what.add_argument('--sampling', action='store_true', help='the kernels that sample keys instead')
    args = parser.parse_args()

    print(f'Compiled, not run: {versions()}\n')
    if args.sampling:
        print(table_of_sampling([names[card] for card in args.cards]))
        return
    wanted = slice(1, None) if args.others else slice(1)
    print(table_of_cases([case for card in args.cards for case in default_cases(names[card])[wanted]]))


if __name__ == '__main__':
    main()
