"""DAT-T and DAT++-T against every installed Swin-T on a GPU, each in its best mode."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..analysis.tables import markdown_table
from .backbones import SWINS, Case, build_dat, infer, train
from .timing import device_name, in_one_line, peak_memory, timings_on

GPU_CASES = (
    Case('224x224, batch 128, classifier features', (128, 3, 224, 224), dense=False),
    Case('800x1280, batch 2, maps of four stages, stage-3 key stride 2 in DAT-T', (2, 3, 800, 1280),
         settings=dict(key_strides=(1, 1, 2, 1))),
    Case('800x1280, batch 2, maps of four stages, stage-3 key stride 1', (2, 3, 800, 1280)),
)  # fmt: skip
Run = Callable[[nn.Module, Tensor], None]
KINDS: dict[str, Run] = {'inference': infer, 'training step': train}


class Mode(NamedTuple):
    """How a model is run."""

    channels_last: bool
    compiled: bool

    def __str__(self) -> str:
        layout = 'channels-last' if self.channels_last else 'NCHW'
        return f'{layout}, compiled' if self.compiled else layout


def benchmark_gpu_backbones(
    device: torch.device,
    cases: Sequence[Case] = GPU_CASES,
    repeats: int = 20,
    dtype: torch.dtype = torch.bfloat16,
    compiled: bool = True,
) -> str:
    """Compares images a second of DAT with those of Swin-T under autocast.

    Each model is tried with inputs and weights as NCHW and channels-last, and by itself and under
    `torch.compile`; in the mode in which it is fastest it then takes turns with the others. All models end
    alike, see `benchmark_backbones`.

    Args:
        device: Where.
        cases: What to compare.
        repeats: Timed calls of each model in its best mode.
        dtype: Of autocast.
        compiled: Try `torch.compile`, which takes minutes.

    Returns:
        Markdown: for inference and training steps images a second, the ratio to the fastest Swin-T and the
        mode; memory is the peak of a training step beyond the weights.
    """
    missing = [name for name in SWINS if find_spec(name) is None]
    spoken = str(dtype).removeprefix('torch.')
    lines = [
        f'{device_name(device)}, PyTorch {torch.__version__}, autocast to {spoken}, images a second by '
        f'medians of {repeats}, taking turns, each model in its fastest mode. Ratios are to the fastest '
        'Swin-T, memory is the peak of a training step beyond the weights.'
    ]
    if missing:
        lines += ['', f'Not installed, so left out: {", ".join(missing)}.']
    for case in cases:
        # PyTorch compiles a function for 8 kinds of arguments by default; all models share some
        with torch._dynamo.config.patch(cache_size_limit=2**10, accumulated_cache_size_limit=2**12):
            lines += ['', f'## {case.name}', '', _compare(case, device, repeats, dtype, compiled)]
    return '\n'.join(lines)


def _compare(case: Case, device: torch.device, repeats: int, dtype: torch.dtype, compiled: bool) -> str:
    builders = {
        'DAT-T': build_dat,
        'DAT++-T': partial(build_dat, arch='pp_tiny'),
        **{f'Swin-T ({name})': build for name, build in SWINS.items() if find_spec(name)},
    }
    image = torch.randn(case.shape, generator=torch.Generator().manual_seed(0)).to(device)
    cells = {name: [name] for name in builders}
    for kind, run in KINDS.items():
        torch.compiler.reset()
        calls, modes = {}, {}
        for name, build in builders.items():
            try:
                model = Autocast(build(case), dtype).to(device)
                modes[name] = _best(model, run, image, compiled)
                calls[name] = _call(model, modes[name], run, image)
            except Exception as error:  # the others' figures stand without it
                cells[name] += [in_one_line(error), '', '']
        timings = timings_on(device)(calls, repeats) if calls else {}
        swins = [timing.median for name, timing in timings.items() if name.startswith('Swin')]
        for name, timing in timings.items():
            ratio = min(swins) / timing.median if swins else torch.nan
            rate = len(image) / timing.median
            images = f'{rate:.0f} ± {rate * timing.spread / timing.median:.0f}'
            cells[name] += [images, f'{ratio:.2f}', str(modes[name])]
        if kind == 'training step':
            for name, row in cells.items():
                row.append(f'{peak_memory(calls[name], device) / 2**20:.0f} MiB' if name in calls else '')
    columns = ('inference', 'ratio', 'mode', 'training', 'ratio', 'mode', 'memory')
    return markdown_table(('model', *columns), cells.values())


class Autocast(nn.Module):
    """A model whose forward pass, and no backward pass, is under autocast."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, image: Tensor) -> tuple[Tensor, ...] | Tensor:
        with torch.autocast(image.device.type, self.dtype):
            return self.model(image)


def _best(model: nn.Module, run: Run, image: Tensor, compiled: bool) -> Mode:
    """The fastest of the modes that work, by three calls of each."""
    medians, errors = {}, []
    for mode in product((False, True), (False, True) if compiled else (False,)):
        mode = Mode(*mode)
        try:
            call = _call(model, mode, run, image)
            medians[mode] = timings_on(image.device)({'it': call}, 3)['it'].median
        except Exception as error:
            errors.append(error)
    if not medians:
        raise errors[0]
    return min(medians, key=medians.get)


def _call(model: nn.Module, mode: Mode, run: Run, image: Tensor) -> Callable[[], None]:
    """A call of a model in a mode, which is left by the next."""
    layout = torch.channels_last if mode.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    return partial(run, torch.compile(model) if mode.compiled else model, image.to(memory_format=layout))
