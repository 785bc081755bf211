"""What queries of Swin, of DCN and of window attention see (Figures 1 and 7)."""

from dataclasses import dataclass
from math import log2

import numpy as np
from torch import Tensor, nn

from ..errors import UserError
from ..layers import WindowAttention
from .inspection import record


@dataclass(frozen=True)
class Window:
    """The window of a query, in a map that is rolled and cut into windows.

    Args:
        index: Of the window among all, row-major.
        query: Index of the query in the window, row-major.
        positions: Of the keys on the map, `(N, 2)` as `(y, x)`, row-major in the window. Beyond the map lie
            those of its padding.
        visible: Which keys the query can see: not those that the roll brought here from the opposite border.
    """

    index: int
    query: int
    positions: np.ndarray
    visible: np.ndarray

    def box(self, map_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """What the query sees of the map: first row, first column, and those behind the last."""
        on_map = self.visible & (self.positions < map_size).all(axis=1)
        seen = self.positions[on_map]
        return *seen.min(axis=0).tolist(), *(seen.max(axis=0) + 1).tolist()


def window_of(query: tuple[int, int], map_size: tuple[int, int], window_size: int, shift: int = 0) -> Window:
    """The window of a query of (shifted) window attention.

    The map is padded at the right and the bottom to whole windows, rolled to the top left, and cut.

    Args:
        query: Its position on the map, `(y, x)`.
        map_size: Height and width of the map.
        window_size: Side of the windows.
        shift: By how much the map is rolled, 0 without a shift.
    """
    padded = np.array([n + -n % window_size for n in map_size])
    rolled = (np.array(query) - shift) % padded
    window, inside = np.divmod(rolled, window_size)
    offsets = np.stack(np.divmod(np.arange(window_size**2), window_size), axis=1)
    keys = window * window_size + offsets
    wrapped = keys >= padded - shift
    visible = (wrapped == (rolled >= padded - shift)).all(axis=1)
    index = window[0] * (padded[1] // window_size) + window[1]
    at = inside[0] * window_size + inside[1]
    return Window(int(index), int(at), (keys + shift) % padded, visible)


def dcn_points(query: tuple[int, int], kernel_size: int = 3, offsets: np.ndarray | None = None) -> np.ndarray:
    """Where a deformable convolution (DCN) with stride 1 samples for a query.

    Args:
        query: Its position on the map, `(y, x)`.
        kernel_size: Side of the kernel, odd.
        offsets: Of the query's points, `(kernel_size ** 2, 2)` as `(y, x)` in pixels of the map. Without them
            these are the points of an ordinary convolution, with which DCN starts its training.

    Returns:
        Positions on the map, `(kernel_size ** 2, 2)` as `(y, x)`.
    """
    reach = kernel_size // 2
    grid = np.stack(np.divmod(np.arange(kernel_size**2), kernel_size), axis=1) - reach
    points = np.array(query) + grid
    return points if offsets is None else points + offsets


@dataclass(frozen=True)
class WindowLayer:
    """A window attention, of Swin or of a DAT with such blocks, and its weights for an image.

    Args:
        name: Of the module in the model.
        map_size: Height and width of its map.
        window_size: Side of its windows.
        shift: By how much it rolls the map.
        attention: `(windows, M, N, N)`, query before key.
    """

    name: str
    map_size: tuple[int, int]
    window_size: int
    shift: int
    attention: Tensor

    def weights(self, window: Window) -> Tensor:
        """How much a query attends to the keys of its window in each head, `(M, N)`."""
        return self.attention[window.index, :, window.query]

    def window_of(self, query: tuple[int, int]) -> Window:
        """The window of the query at `(y, x)` of the map."""
        return window_of(query, self.map_size, self.window_size, self.shift)


def window_layers(model: nn.Module, images: Tensor) -> dict[int, list[WindowLayer]]:
    """The window attentions of a Swin of mmdet, mmseg or mmpretrain, or of a DAT with blocks `L` and `S`.

    Args:
        model: The backbone, in evaluation mode, see `inspecting`.
        images: `(1, 3, H, W)`, what it takes.

    Returns:
        For each stride, in pixels of the input for one of the map, its layers in the order of the network.

    Raises:
        UserError: If it has none.
    """
    modules = dict(model.named_modules())
    # the libraries' classes have no base in common
    swin = {name: module for name, module in modules.items() if hasattr(module, 'w_msa')}
    ours = {name: module for name, module in modules.items() if isinstance(module, WindowAttention)}
    if not (swin or ours):
        raise UserError(f'{type(model).__name__} has no window attention, as Swin has it')
    softmaxes = {f'{name}.w_msa.softmax': module.w_msa.softmax for name, module in swin.items()}
    calls = record({**swin, **softmaxes, **ours}, model, images)
    layers = {}
    for name in [name for name in modules if name in calls and name not in softmaxes]:
        module, (inputs, _) = modules[name], calls[name]
        if name in ours:
            size, settings = tuple(inputs[0].shape[1:3]), (module.window_size, module.shift)
            attention = module.attention_weights(inputs[0])[0]
        else:
            size = tuple(inputs[1])
            settings = module.window_size, _shift_of(module, size)
            attention = calls[f'{name}.w_msa.softmax'][1]
        stride = 2 ** round(log2(images.shape[2] / size[0]))
        layers.setdefault(stride, []).append(WindowLayer(name, size, *settings, attention))
    return layers


def _shift_of(module: nn.Module, map_size: tuple[int, int]) -> int:
    """By how much a layer of Swin shifts; mmpretrain's does not shift maps of one window."""
    is_one_window = min(map_size) == module.window_size and not getattr(module, 'pad_small_map', True)
    return 0 if is_one_window else module.shift_size


def default_windows(query: tuple[int, int], map_size: tuple[int, int], window_size: int = 7) -> list[Window]:
    """The windows of a query in two successive blocks of Swin, the second shifted by half a window."""
    return [window_of(query, map_size, window_size, shift) for shift in (0, window_size // 2)]
