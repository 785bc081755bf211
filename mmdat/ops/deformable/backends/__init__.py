"""The backends of deformable attention, the fastest first on each kind of device."""

from .base import DeformableBackend
from .cpu import CPU
from .portable import Portable
from .triton import Triton

_PORTABLE = Portable()
_LADDERS: dict[str, tuple[DeformableBackend, ...]] = {
    'cpu': (CPU(), _PORTABLE),
    'cuda': (Triton(), _PORTABLE),
    # Where there are no numbers, the equations cost what they cost: no backend.
    'meta': (),
}

BACKENDS = {backend.name: backend for ladder in (*_LADDERS.values(), (_PORTABLE,)) for backend in ladder}


def ladder(device_type: str) -> tuple[DeformableBackend, ...]:
    return _LADDERS.get(device_type, (_PORTABLE,))
