"""What a training step costs on a GPU that is not there: kernels, bytes, waits of the host, peak of memory.

Computed on fake tensors (`fake_cuda.py`), by what PyTorch's operators do on CUDA (`cuda_kernels.py`). Nothing
is timed: a census compares two ways to compute the same, and says what fits into a card.
"""

import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from traceback import extract_stack

import torch
from torch import Tensor, nn

from . import cuda_kernels
from .fake_cuda import DEVICE, FakeCuda, in_own_process, prepare_process

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclass
class Counts:
    """Of a step, or of a part of it.

    Attributes:
        kernels: Launched on the device, by operator.
        moved: Bytes that kernels read and write.
        copies: Between host and device, with the place in the code that asked for each.
        waits: Of the host for numbers of the device, alike.
    """

    kernels: Counter = field(default_factory=Counter)
    moved: int = 0
    copies: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)

    def __add__(self, other: 'Counts') -> 'Counts':
        return Counts(
            self.kernels + other.kernels,
            self.moved + other.moved,
            self.copies + other.copies,
            self.waits + other.waits,
        )


@dataclass
class Report:
    """What a census found.

    Attributes:
        parts: `Counts` by name of the part of the step, such as `'forward'`.
        peak: Most bytes that the allocator had given away at a time.
        at_peak: Of these, bytes by what was being done when they were taken, such as `'weights'`.
        kept: Bytes that were alive when each part began.
    """

    parts: dict[str, Counts] = field(default_factory=dict)
    peak: int = 0
    at_peak: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)

    def total(self, *names: str) -> Counts:
        """Of some parts, by default of all."""
        return sum((self.parts[name] for name in names or self.parts), Counts())


class Census(FakeCuda):
    """Counts what is computed on CUDA inside, without a GPU. Only after `prepare_process`.

    The peak counts storages from the operator that makes them to their last reference, rounded as PyTorch's
    caching allocator rounds them; it has no fragmentation, no CUDA context and no libraries' workspaces.
    """

    def __init__(self):
        super().__init__()
        self.report = Report()
        self._live = 0
        self._live_by_part = Counter()
        self._storages = weakref.WeakSet()
        self._part = ''

    @contextmanager
    def part(self, name: str):
        """Counts what is done inside as a part of its own."""
        before, self._part = self._part, name
        self.report.parts.setdefault(name, Counts())
        self.report.kept.setdefault(name, self._live)
        try:
            yield
        finally:
            self._part = before

    def compute(self, func, args: tuple, kwargs: dict):
        out = func(*args, **kwargs)
        call = cuda_kernels.Call.of(func, args, kwargs, out)
        inputs, outputs = call.inputs(), call.outputs()
        for tensor in (*inputs, *outputs):
            self._keep(tensor)
        if self._part and any(map(_on_device, (*inputs, *outputs))):
            self._count(call, inputs, outputs)
        return out

    def _count(self, call: cuda_kernels.Call, inputs: list[Tensor], outputs: list[Tensor]):
        counts, name = self.report.parts[self._part], str(call.func).removeprefix('aten.')
        if not all(map(_on_device, (*outputs, *(t for t in inputs if t.ndim)))) and _copies(call.func):
            counts.copies[f'{_place()}: {name}'] += 1
            if not _on_device(outputs[0]):
                counts.waits[f'{_place()}: {name}'] += 1
            return
        if cuda_kernels.reads_host(call):
            counts.waits[f'{_place()}: {name}'] += 1
        kernels, extra, scratch = cuda_kernels.cost(call)
        if kernels:
            counts.kernels[name] += kernels
            counts.moved += cuda_kernels.count_bytes(call, _on_device) + extra
            self._note_peak(scratch)

    def _keep(self, tensor: Tensor):
        if not _on_device(tensor):
            return
        storage = tensor.untyped_storage()
        if storage in self._storages:
            return
        self._storages.add(storage)
        size, part = round_size(storage.nbytes()), self._part
        self._live += size
        self._live_by_part[part] += size
        weakref.finalize(storage, self._free, size, part)
        self._note_peak(0)

    def _note_peak(self, scratch: int):
        if self._live + scratch > self.report.peak:
            self.report.peak = self._live + scratch
            self.report.at_peak = {**self._live_by_part, 'scratch': scratch}

    def _free(self, size: int, part: str):
        self._live -= size
        self._live_by_part[part] -= size


def round_size(size: int) -> int:
    """Bytes that PyTorch's allocator takes: multiples of 512, and from 10 MiB on of 2 MiB."""
    unit = 512 if size < 10 * MIB else 2 * MIB
    return -(-size // unit) * unit


def count_module(
    module: nn.Module, shape: tuple[int, ...], amp: torch.dtype | None = None, backward: bool = True
) -> Report:
    """The census of a module on an input of float32 that has a gradient.

    The module may live anywhere; what is counted is a copy of it on the fake device.

    Args:
        module: Takes one tensor, returns one or several.
        shape: Of the input.
        amp: Dtype of autocast, or `None` for none.
        backward: Whether to count a training step, or else a forward pass.

    Returns:
        With the parts `'forward'` and `'backward'`. The peak counts weights, gradients and the input too.
    """
    return in_own_process(_count_module, module, shape, amp, backward)


def _count_module(module, shape, amp, backward) -> Report:
    prepare_process()
    with Census() as census:
        with census.part('weights'):
            module = _fake(module).train(backward)
        with census.part('input'):
            x = torch.empty(shape, device=DEVICE, requires_grad=backward)
        with torch.set_grad_enabled(backward):
            with census.part('forward'), autocast(amp):
                outs = module(x)
            if backward:
                with census.part('gradients of the output'):
                    outs = [out for out in cuda_kernels.tensors(outs) if out.requires_grad]
                    grads = [torch.empty_like(out) for out in outs]
                with census.part('backward'):
                    torch.autograd.backward(outs, grads)
    census.report.parts.pop('weights')
    return census.report


def autocast(dtype: torch.dtype | None):
    return nullcontext() if dtype is None else torch.autocast('cuda', dtype=dtype)


def _fake(module: nn.Module) -> nn.Module:
    """A module with the same layers on the fake device, without numbers."""
    return module._apply(
        lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE).requires_grad_(
            t.requires_grad
        )
    )


def _on_device(x: Tensor) -> bool:
    return x.device.type == 'cuda'


def _copies(func) -> bool:
    return func._schema.name in ('aten::_to_copy', 'aten::copy_', 'aten::_copy_from', 'aten::to')


def _place() -> str:
    """The innermost line of the project, or else of OpenMMLab, that is being run."""
    for library in ('/mmdat/', '/mmdet/', '/mmseg/', '/mmpretrain/', '/mmengine/', '/mmcv/'):
        for frame in reversed(extract_stack()):
            if library in frame.filename and '/mmdat/analysis/' not in frame.filename:
                return f'{library[1:]}{frame.filename.rsplit(library)[-1]}:{frame.lineno}'
    return 'elsewhere'
