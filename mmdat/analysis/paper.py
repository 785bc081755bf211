"""The paper's tables beside what this code counts. The paper's numbers are in `configs/*/metafile.yml`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import load

from .flops import Complexity, count_complexity
from .tables import markdown_table

TITLES = {
    '2': 'ImageNet-1K classification',
    '3': 'RetinaNet on COCO, 800 x 1280',
    '4a': 'Mask R-CNN on COCO, 800 x 1280',
    '4b': 'Cascade Mask R-CNN on COCO, 800 x 1280',
    '5': 'Semantic FPN and UperNet on ADE20K, 512 x 2048',
    '6': 'Offsets and position biases',
    '7': 'Deformable attention in other stages',
    '8': "Deformable DETR's attention",
    '9': 'Convolutional patch embeddings',
}
_HEADLINES = ('Top 1 Accuracy', 'box AP', 'mask AP', 'mIoU', 'mIoU(ms+flip)')
_COLUMNS = (
    'config',
    *('GFLOPs, paper', 'here', 'difference'),
    *('M parameters, paper', 'here', 'difference'),
    "paper's result",
)


@dataclass(frozen=True)
class Figure:
    """A number as the paper prints it, such as `4.59G`, and the same quantity of our model."""

    printed: str
    value: float

    @property
    def paper(self) -> str:
        return self.printed[:-1]

    @property
    def here(self) -> str:
        """Our value to the digits of the paper."""
        return f'{self.scaled:.{len(self.paper.partition(".")[2])}f}'

    @property
    def scaled(self) -> float:
        return self.value / {'G': 1e9, 'M': 1e6}[self.printed[-1]]

    @property
    def difference(self) -> float:
        """Relative to the paper."""
        return self.scaled / float(self.paper) - 1


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables."""

    table: str
    config: str
    flops: Figure
    parameters: Figure
    result: str


def paper_rows(index: str | Path) -> Iterator[Row]:
    """Counts every model that the metafiles place in a table of the paper.

    Args:
        index: `model-index.yml`, beside which `configs/` lies.
    """
    root = Path(index).parent

    @cache
    def complexity(config: str) -> Complexity:
        return count_complexity(Config.fromfile(root / config))['model']

    for metafile in load(index)['Import']:
        for model in load(root / metafile)['Models']:
            metrics = [metric for result in model.get('Results', []) for metric in result['Metrics'].items()]
            for place in model.get('Metadata', {}).get('Paper', []):
                count = complexity(model['Config'])
                # buffers that this row of the paper takes for parameters
                parameters = count.parameters + place.get('Buffers', 0)
                yield Row(
                    str(place['Table']),
                    model['Config'],
                    Figure(place['FLOPs'], count.flops),
                    Figure(place['Parameters'], parameters),
                    ', '.join(f'{name} {value}' for name, value in metrics if name in _HEADLINES),
                )


def to_markdown(rows: list[Row]) -> str:
    """The rows as tables in the paper's order."""
    sections = []
    for table in sorted({row.table for row in rows}):
        cells = [_cells(row) for row in rows if row.table == table]
        sections.append(f'### Table {table}: {TITLES[table]}\n\n{markdown_table(_COLUMNS, cells)}')
    return '\n\n'.join(sections)


def _cells(row: Row) -> list[str]:
    cells = [f'`{row.config.removeprefix("configs/").removesuffix(".py")}`']
    for figure in (row.flops, row.parameters):
        same = figure.here == figure.paper
        cells += [figure.paper, figure.here, '=' if same else f'{figure.difference:+.1%}']
    return [*cells, row.result]
