"""How much memory a computation needs, counted and so the same on each machine."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live at the same time, those of the meta device too.

    `peak` is the most there were. Scratch memory inside an operator of PyTorch is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = self._live = 0
        self._storages = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if (
                isinstance(tensor, torch.Tensor)
                and (storage := tensor.untyped_storage()) not in self._storages
            ):
                self._storages.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return out

    def _free(self, nbytes: int):
        self._live -= nbytes
