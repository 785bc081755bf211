"""The tables of `configs/*/README.md`, made of the metafiles beside them."""

from pathlib import Path

from mmengine.fileio import load

from .tables import markdown_table

_FIRST = ('config', 'Table', 'FLOPs', 'Parameters', 'Memory')
MARK = '<!-- What follows is written by tools/analysis/update_config_pages.py from metafile.yml. -->\n'


def config_table(metafile: str | Path) -> str:
    """A row for each config: what the paper counts, the results, and the released weights.

    Args:
        metafile: `metafile.yml` of a folder of configs.
    """
    content = load(str(metafile))
    sources = {collection['Name']: collection['Metadata']['Results'] for collection in content['Collections']}
    rows = [_row(model, sources[model['In Collection']]) for model in content['Models']]
    columns = list(dict.fromkeys(name for row in [_FIRST, *rows] for name in row))
    columns = [name for name in columns if any(name in row for row in rows)]
    return markdown_table(columns, [[row.get(name, '') for name in columns] for row in rows])


def update_page(page: str | Path) -> None:
    """Writes the table of a `README.md` again, below its mark.

    Raises:
        ValueError: If the page has no mark.
    """
    page = Path(page)
    introduction, mark, _ = page.read_text().partition(MARK)
    if not mark:
        raise ValueError(f'{page} has no line {MARK.strip()!r}, below which the table goes')
    page.write_text(f'{introduction}{MARK}\n{config_table(page.with_name("metafile.yml"))}\n')


def _row(model: dict, source: str) -> dict[str, object]:
    path = Path(model['Config'])
    row = {'config': f'[{path.stem}]({path.name})'}
    paper = model.get('Metadata', {}).get('Paper', [{}])[0]
    row |= {name: paper[name] for name in _FIRST if name in paper}
    for result in model.get('Results', []):
        row |= result['Metrics']
    if 'Results' in model or source.startswith('not'):
        row['results'] = source
    if 'Weights' in model:
        row['weights'] = f'[file]({model["Weights"]})'
    return row
