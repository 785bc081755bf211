"""Latency of an exported file beside the model in PyTorch, on the CPU."""

import torch
from torch import nn

from ..export import part_of
from ..export.export import find_shape, load_exported
from .timing import device_name, interleaved_timings


def benchmark_exported(
    model: nn.Module,
    path: str,
    shape: tuple[int, int] | None = None,
    backbone_only: bool = False,
    repeats: int = 7,
) -> str:
    """Times a file and PyTorch in turns, on one image.

    Args:
        model: On the CPU.
        path: What `export_model` wrote of it.
        shape: Height and width of the image; by default those of the config.
        backbone_only: As it was exported.
        repeats: Turns of each.

    Returns:
        One line: medians in milliseconds, and their ratio.
    """
    part, run = part_of(model, backbone_only), load_exported(path)
    image = torch.randn(1, 3, *(shape or find_shape(model)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        timings = interleaved_timings({'PyTorch': lambda: part(image), 'file': lambda: run(image)}, repeats)
    name = device_name(torch.device('cpu'))
    ours, theirs = (1000 * timings[name].median for name in ('file', 'PyTorch'))
    return (
        f'latency of one image: {ours:.1f} ms beside {theirs:.1f} ms in PyTorch, ratio {ours / theirs:.2f} '
        f'(medians of {repeats} turns, {torch.get_num_threads()} threads, {name})'
    )
