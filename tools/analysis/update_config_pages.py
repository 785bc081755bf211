from argparse import ArgumentParser
from pathlib import Path

from mmdat.analysis.config_pages import update_page


def main():
    parser = ArgumentParser(description='Write the tables of configs/*/README.md again, from the metafiles')
    parser.parse_args()
    for page in sorted(Path(__file__).resolve().parents[2].glob('configs/[!_]*/README.md')):
        update_page(page)


if __name__ == '__main__':
    main()
