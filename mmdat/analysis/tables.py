from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown: the names of the columns, and a row for each of `rows`."""
    head, *body = (f'| {" | ".join(map(str, cells))} |' for cells in (columns, *rows))
    return '\n'.join([head, f'|{"-|" * len(columns)}', *body])
