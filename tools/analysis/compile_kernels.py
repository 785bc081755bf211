from argparse import ArgumentParser

from mmdat.analysis.gpu_kernels import SHARED_MEMORY, default_cases, table_of_cases, versions


def main():
    names = {f'{major}{minor}': (major, minor) for major, minor in SHARED_MEMORY}
    parser = ArgumentParser(description='Compile the Triton kernels for cards that need not be here')
    parser.add_argument('cards', nargs='+', choices=names, metavar='CARD', help=f'of {", ".join(names)}')
    parser.add_argument('--all', action='store_true', help='not only bfloat16 with heads of 32')
    args = parser.parse_args()

    cases = [case for card in args.cards for case in default_cases(names[card])[: None if args.all else 1]]
    print(f'Compiled, not run: {versions()}\n')
    print(table_of_cases(cases))


if __name__ == '__main__':
    main()
