"""What a checkpoint may hold besides tensors and plain values: a short list, and nothing that can act.

PyTorch's `weights_only` reader looks up each name that a pickle asks for in such a list, and refuses the
file if it is not there. MMEngine's own list holds `getattr`, and where the reader refuses a file, MMEngine
reads it again with Python's unpickler, which runs whatever the file says. Neither is done here.
"""

from collections import OrderedDict
from collections.abc import Callable
from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer

_DTYPES = [np.dtype(code) for code in '? b h i l q B H I L Q e f d F D U S'.split()]


def allowed_globals() -> list[Callable | tuple[Callable, str]]:
    """The list, as `torch.serialization.safe_globals` takes it: objects, and stand-ins for named ones."""
    stand_ins = [
        # The authors' classifiers keep their configuration, a dict with methods. A plain one does: yacs is
        # neither needed nor asked.
        (OrderedDict, 'yacs.config.CfgNode'),
        # MMEngine's training state: HistoryBuffers, of arrays that may be empty, which name their methods
        (_history_method, 'builtins.getattr'),
        (_no_bytes, 'builtins.bytes'),
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # NumPy 1 and 2
        stand_ins += [(_array, f'{module}._reconstruct'), (_scalar, f'{module}.scalar')]
    dtypes = {type(dtype) for dtype in _DTYPES}
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *stand_ins]


def _history_method(owner: type, name: str) -> Callable:
    method = vars(HistoryBuffer).get(name) if owner is HistoryBuffer else None
    if method is None or name.startswith('_'):
        raise UnpicklingError(f'GLOBAL builtins.getattr of {name!r} was not an allowed global by default.')
    return method


def _no_bytes() -> bytes:
    return b''


def _array(subtype: type, shape: tuple, dtype: object) -> np.ndarray:
    if subtype is not np.ndarray:
        raise UnpicklingError(f'an array cannot be of {subtype}')
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _scalar(dtype: np.dtype, value: bytes) -> np.generic:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(value, bytes):
        raise UnpicklingError(f'a NumPy scalar cannot be of {dtype}')
    return np.frombuffer(value, dtype, count=1)[0]
