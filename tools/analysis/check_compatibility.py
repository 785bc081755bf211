import logging
from pathlib import Path

from mmdat.analysis.compatibility import NAMES, OWN, compatibility_row, update_page
from mmdat.engine.cli import Parser, run_tool

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'compatibility.md'


def main():
    parser = Parser(description="Try DAT-T in the libraries' stock configs, and mmdat's own configs")
    parser.add_argument('names', nargs='*', metavar='LIBRARY::CONFIG', help='some configs; default: all')
    parser.add_argument('--write', action='store_true', help=f'put the rows into {PAGE.name}')
    args = parser.parse_args()

    logging.disable(logging.INFO)
    for name in args.names or (*NAMES, *OWN):
        row = compatibility_row(name)
        print(f'| {" | ".join(row)} |', flush=True)
        if args.write:
            update_page(PAGE, {name: row})


if __name__ == '__main__':
    run_tool(main)
