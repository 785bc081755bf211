"""Counts what operators do on CUDA, and follows the lifetime of each tensor's memory.

Nothing is timed: a census compares two ways to compute the same, and says what fits into a card.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .fake_cuda import DEVICE, FakeCuda
from .kernels import Call, cost, count_bytes, nbytes, reads_host

MIB = 2**20
_HERE, _TORCH = (str(Path(path).parent) for path in (__file__, torch.__file__))


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

    `followed` has operators whose inside is to be counted, each with a function that computes, on the device,
    what the operator does, from its arguments and what it returned.

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
        self._known = {}
        self.followed: dict[OpOverloadPacket, Callable[[tuple, Any], None]] = {}

    @contextmanager
    def part(self, name: str):
        """Counts what is done inside as a part of its own."""
        before = self._part
        self.begin(name)
        try:
            yield
        finally:
            self._part = before

    def begin(self, name: str) -> None:
        """Counts what follows as another part, until the part that contains it ends."""
        self._part = name
        self.report.parts.setdefault(name, Counts())
        self.report.kept.setdefault(name, self._live)

    def forget_peak(self) -> None:
        """Looks for the peak from now on."""
        self.report.peak = 0

    def launch(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Counts a kernel that PyTorch does not know."""
        for tensor in (*read, *written):
            self._keep(tensor)
        counts = self._counts()
        counts.kernels[name] += 1
        counts.moved += sum(nbytes(t) for t in {id(t): t for t in (*read, *written)}.values())

    def operate(self, func, args: tuple, kwargs: dict):
        """What an operator returns."""
        return super().compute(func, args, kwargs)

    def compute(self, func, args: tuple, kwargs: dict):
        out = self.operate(func, args, kwargs)
        call = Call.of(func, args, kwargs, out)
        inputs, outputs = call.inputs(), call.outputs()
        for tensor in (*inputs, *outputs):
            self._keep(tensor)
        if self._part and any(map(_on_device, (*inputs, *outputs))):
            if function := self.followed.get(func.overloadpacket):
                self._follow(function, call)
            else:
                self._count(call, inputs, outputs)
        return out

    def _count(self, call: Call, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        counts, name = self._counts(), str(call.func).removeprefix('aten.')
        if _copies(call.func) and not all(map(_on_device, (*inputs, *outputs))):
            counts.copies[f'{_place()}: {name}'] += 1
            if not _on_device(outputs[0]):
                counts.waits[f'{_place()}: {name}'] += 1
            return
        if reads_host(call):
            counts.waits[f'{_place()}: {name}'] += 1
        kernels, extra, scratch = cost(call)
        if kernels:
            counts.kernels[name] += kernels
            counts.moved += count_bytes(call, _on_device) + extra
            self._note_peak(scratch)

    def _follow(self, function: Callable[[tuple, Any], None], call: Call) -> None:
        """Counts what an operator does inside, once for all calls with the same shapes."""
        key = call.func, str(tree_map_only(Tensor, _layout, call.args))
        if key not in self._known:
            part, report, live = self._part, self.report, self._live
            self.report = Report()
            with self.part('inside'), torch.no_grad(), self._resumed():
                function(tuple(call.args.values()), call.out)
            inside, self.report, self._part = self.report, report, part
            self._known[key] = inside.parts['inside'], max(inside.peak - live, 0)
        counts, scratch = self._known[key]
        self.report.parts[self._part] += counts
        self._note_peak(scratch)

    @contextmanager
    def _resumed(self):
        """Follows operators again, inside the computation of one."""
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    def _counts(self) -> Counts:
        return self.report.parts[self._part]

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


def autocast(dtype: torch.dtype | None):
    """Mixed precision on CUDA, or none."""
    return nullcontext() if dtype is None else torch.autocast('cuda', dtype=dtype)


def fake(module: nn.Module) -> nn.Module:
    """A module with the same layers on the fake device, without numbers."""
    return module._apply(
        lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE).requires_grad_(
            t.requires_grad
        )
    )


def _on_device(x: Tensor) -> bool:
    return x.device.type == 'cuda'


def _layout(x: Tensor) -> tuple:
    return x.shape, x.stride(), x.dtype, x.device


def _copies(func) -> bool:
    return func._schema.name in ('aten::_to_copy', 'aten::copy_', 'aten::_copy_from', 'aten::to')


def _place() -> str:
    """The innermost line of the project, or else of OpenMMLab, that is being run."""
    frame, lines = sys._getframe(1), []
    while frame is not None:
        if not frame.f_code.co_filename.startswith((_HERE, _TORCH)):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    for library in ('/mmdat/', '/mmdet/', '/mmseg/', '/mmpretrain/', '/mmcv/', '/mmengine/'):
        for path, line in lines:
            if library in path:
                return f'{library[1:]}{path.rsplit(library)[-1]}:{line}'
    return '{}:{}'.format(*lines[0]) if lines else "a formula of PyTorch's backward pass"
