"""Censuses as tables of Markdown."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from ...backbones.dat import DAT
from ...errors import UserError
from ..tables import markdown_table
from .canvases import batch_size, usual_canvas, worst_canvas
from .counting import MIB, Counts, Report
from .modules import count_module, kinds
from .processes import Processes
from .training_step import count_in_this_process

GIB = 2**30
USUAL_BOXES, MANY_BOXES = 10, 100  # of an image of COCO, and of one with many
_STEP_COLUMNS = (
    'config',
    'images',
    'canvas',
    'kernels of the backbone',
    'of the rest',
    'of the update',
    'GiB moved by the backbone',
    'by the rest',
    'peak GiB',
    'largest canvas',
    'peak GiB there',
    'waits and copies in the backbone',
    'in the rest',
)


@dataclass(frozen=True)
class Step:
    """The census of a config: on its usual canvas, and on the largest, where that is another."""

    name: str
    images: int
    canvases: tuple[tuple[int, int], tuple[int, int]]
    usual: Report
    worst: Report

    def cells(self) -> list[object]:
        backbone = self.usual.total('backbone', 'backward of the backbone')
        rest = self.usual.total('neck and heads', 'backward of neck and heads')
        return [
            self.name,
            self.images,
            _size(self.canvases[0]),
            backbone.kernels.total(),
            rest.kernels.total(),
            self.usual.parts['update'].kernels.total(),
            f'{backbone.moved / GIB:.1f}',
            f'{rest.moved / GIB:.1f}',
            f'{self.usual.peak / GIB:.2f}',
            _size(self.canvases[1]),
            f'{self.worst.peak / GIB:.2f}',
            waits_and_copies(backbone),
            waits_and_copies(rest),
        ]


def _count_step(
    path: str,
    cfg: Config,
    amp: torch.dtype | None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Step:
    """Both censuses of a config; on one canvas where `size` is given."""
    canvases = (size, size) if size else (usual_canvas(cfg), worst_canvas(cfg))
    batch = batch or batch_size(cfg)
    usual = count_in_this_process(cfg, canvases[0], batch, amp, USUAL_BOXES)
    one = canvases[0] == canvases[1] and cfg.default_scope != 'mmdet'
    worst = (
        usual if one else count_in_this_process(cfg, canvases[1], batch, amp, MANY_BOXES, with_update=False)
    )
    return Step(path, batch, canvases, usual, worst)


def count_steps(
    configs: dict[str, Config],
    amp: torch.dtype | None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    jobs: int = os.cpu_count() or 1,
) -> Iterator[Step]:
    """The censuses of configs, in their order, several at a time. What costs the same is counted once."""
    with Processes(jobs) as processes:
        futures = {}
        for path, cfg in configs.items():
            key = _what_costs(cfg)
            if key not in futures:
                futures[key] = processes.submit(_count_step, path, cfg, amp, size, batch)
        for path, cfg in configs.items():
            step = futures[_what_costs(cfg)].result()
            yield Step(path, step.images, step.canvases, step.usual, step.worst)


def steps_to_markdown(steps: Sequence[Step]) -> str:
    return markdown_table(_STEP_COLUMNS, (step.cells() for step in steps))


def places_to_markdown(step: Step) -> str:
    """Where the host waits and copies, by part of the step."""
    rows = [
        (part, kind, place, number)
        for part, counts in step.usual.parts.items()
        for kind, places in (('wait', counts.waits), ('copy', counts.copies))
        for place, number in places.most_common()
    ]
    return markdown_table((step.name, 'what', 'where', 'times'), rows)


def blocks_to_markdown(
    model: DAT, size: tuple[int, int], batch: int, amp: torch.dtype | None = None, name: str = 'backbone'
) -> str:
    """A row for each kind of block, and one for the backbone: kernels, bytes, memory, waits and copies.

    `kept` is what a block leaves in memory for its backward pass, its output and casts of weights included.
    """
    rows = [
        (kind.name, kind.number, count_module(kind.block, kind.shape, amp))
        for kind in kinds(model, size, batch)
    ]
    whole = count_module(model, (batch, 3, *size), amp)
    moved = whole.total().moved
    columns = (
        f'{name}, {batch} x {_size(size)}, {name_of(amp)}',
        'blocks',
        'share of the bytes',
        'kernels forward',
        'backward',
        'MiB moved forward',
        'backward',
        'MiB kept',
        'MiB at the peak',
        'waits and copies',
    )
    return markdown_table(columns, (_block_cells(*row, moved) for row in [*rows, ('backbone', 1, whole)]))


def _block_cells(name: str, number: int, report: Report, moved: int) -> list[object]:
    forward, backward = report.parts['forward'], report.parts['backward']
    kept = report.kept['gradients of the output'] - report.kept['forward']
    return [
        name,
        number,
        f'{number * (forward.moved + backward.moved) / moved:.0%}',
        forward.kernels.total(),
        backward.kernels.total(),
        *(round(size / MIB) for size in (forward.moved, backward.moved, kept, report.peak)),
        waits_and_copies(forward + backward),
    ]


def replace_table(path: Path, kind: str, text: str) -> None:
    """Puts a text into a file of Markdown, between its lines `<!-- census KIND -->` and `<!-- end -->`.

    Raises:
        UserError: If the file has no such lines.
    """
    start, end = f'<!-- census {kind} -->', '<!-- end -->'
    before, found, rest = path.read_text().partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UserError(f'{path} has no lines {start} and {end}, between which the table goes')
    path.write_text(f'{before}{start}\n\n{text}\n\n{end}{after}')


def name_of(amp: torch.dtype | None) -> str:
    return 'float32' if amp is None else f'AMP in {str(amp).removeprefix("torch.")}'


def waits_and_copies(counts: Counts) -> int:
    """How often the host waits for the device, or copies something to it without waiting."""
    return (counts.waits | counts.copies).total()


def _size(size: tuple[int, int]) -> str:
    return '{} x {}'.format(*size)


def _what_costs(cfg: Config) -> str:
    """What a census depends on: not how often paths are dropped, but whether they are."""
    model = cfg.model.to_dict()
    model['backbone']['init_cfg'] = None
    rate = model['backbone'].get('drop_path_rate')
    model['backbone']['drop_path_rate'] = rate if rate is None else bool(rate)
    pipeline = usual_canvas(cfg), worst_canvas(cfg), batch_size(cfg)
    return json.dumps([model, cfg.optim_wrapper.to_dict(), pipeline], sort_keys=True, default=str)
