"""Programs of `torch.export`: graphs of PyTorch's own operations, which run without this package."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten

import torch
from torch import Tensor
from torch.export import Dim

from ..errors import UserError
from ..ops.ladder import REFERENCE
from .parts import Part

Run = Callable[[Tensor], list[Tensor]]


def write_program(
    part: Part, example: Tensor, path: str, described: Mapping[str, str], dynamic: bool
) -> None:
    """Writes a part of a model, for batches of every size.

    Args:
        part: What is exported.
        example: `(B, 3, H, W)` with at least two images, because `torch.export` takes 1 for a constant.
        path: Where the file goes.
        described: Goes into the file, as a file `mmdat/KEY` each.
        dynamic: For images of other sizes as well, as far as `torch.export` goes: if their maps have one row
            or column of windows, or whole windows, where those of the example have.
    """
    sizes = {0: Dim('batch', min=1)} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic else {})
    with torch.no_grad(), _plain_formulas():
        program = torch.export.export(part, (example,), dynamic_shapes=(sizes,))
    torch.export.save(program, path, extra_files={f'mmdat/{key}': text for key, text in described.items()})


def load_program(path: str) -> Run:
    """A function from images to the outputs."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        try:
            with torch.no_grad():
                return list(module(images))
        except AssertionError as error:  # its guards
            guard = shorten(str(error), 120, placeholder=' ...')
            raise UserError(
                f'the program does not take images {tuple(images.shape)}: {guard}; which it takes follows '
                'from the --shape of its export (docs/export.md)'
            ) from error

    return run


@contextmanager
def _plain_formulas() -> Iterator[None]:
    """Our own operators would need this package wherever the program runs."""
    before = os.environ.get('MMDAT_BACKEND')
    os.environ['MMDAT_BACKEND'] = REFERENCE
    try:
        yield
    finally:
        if before is None:
            del os.environ['MMDAT_BACKEND']
        else:
            os.environ['MMDAT_BACKEND'] = before
