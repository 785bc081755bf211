from torch import Tensor

from ..ladder import REFERENCE, asked_for, check_name, choose, explain_choice, transform_reason
from ..sizes import is_traced
from .backends import BACKENDS, DeformableBackend, ladder
from .coordinates import Coordinates
from .inputs import Inputs
from .operator import OPERATORS
from .reference import deformable_attention_reference


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
    backend: str | None = None,
) -> Tensor:
    """Attention of a regular grid of queries to deformed keys, Equation (9) of the paper.

    `softmax(q k^T / sqrt(d) + phi(B; R)) v`, where `R` are the displacements between the queries' grid
    and the keys' sampling locations, and `phi` interpolates the bias table bilinearly (Equation (8)).

    Args:
        q: Queries `(B, M, H * W, d)`, row-major on the grid of `query_size`.
        k: Keys `(B, M, N_k, d)`.
        v: Values `(B, M, N_k, d)`.
        bias_table: `(M, T_h, T_w)`, a table of relative position biases for each head.
        sampling_locations: Where the keys were sampled, `(B, G, N_k, 2)`, `(y, x)`, normalised such
            that -1 and +1 are the centres of the border pixels. `G` divides `M`; heads are contiguous
            in the groups.
        query_size: `(H, W)`.
        coordinates: Convention of the queries' grid, `'half_pixel'` (CVPR'22) or `'corners'` (DAT++).
        backend: `'reference'`, the equations; `'portable'`, PyTorch in bounded memory; `'cpu'`, a compiled
            kernel; or `None`: what the environment variable `MMDAT_BACKEND` says, or else the fastest for
            these inputs. `explain` tells which that is. Under `torch.func` and forward-mode differentiation,
            which know PyTorch's own operations only, `None` gets the equations; under `torch.jit.trace`,
            which cannot record sizes in an operator, everything does.

    Returns:
        `(B, M, H * W, d)` in the dtype of `v`.

    Raises:
        ValueError: If shapes do not fit each other, or `backend` is unknown or cannot serve these inputs.
    """
    inputs = Inputs(q, k, v, bias_table, sampling_locations, query_size, coordinates)
    if not is_traced(*query_size):
        inputs.check_shapes()
    chosen = _choose(inputs, backend)
    if chosen is None:
        return deformable_attention_reference(*inputs)
    tensors = (t.to(dtype) for t, dtype in zip(inputs.tensors(), chosen.dtypes(inputs)))
    out, _ = OPERATORS[chosen.name].forward(*tensors, query_size, coordinates)
    return out.to(v.dtype)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
    backend: str | None = None,
) -> str:
    """The backend that `deformable_attention` takes for the same arguments, and why: `'cpu: ...'`."""
    inputs = Inputs(q, k, v, bias_table, sampling_locations, query_size, coordinates)
    inputs.check_shapes()
    _choose(inputs, backend)  # an error if that is one
    name, asked_by = _asked_for(backend)
    if name is not None:
        return f'{name}: asked for by {asked_by}'
    if reason := transform_reason():
        return f'{REFERENCE}: {reason}'
    return explain_choice(ladder(inputs.q.device.type), inputs)


def _choose(inputs: Inputs, name: str | None) -> DeformableBackend | None:
    """The one place where a backend is chosen; `None` stands for the reference."""
    if is_traced(*inputs.query_size):
        return None
    name, asked_by = _asked_for(name)
    if name is None:
        return None if transform_reason() else choose(ladder(inputs.q.device.type), inputs)
    if name == REFERENCE:
        return None
    backend = BACKENDS[name]
    if reasons := backend.not_supported_reasons(inputs):
        raise ValueError(f'{asked_by} asks for the {name} backend, but {"; ".join(reasons)}')
    return backend


def _asked_for(name: str | None) -> tuple[str | None, str]:
    """The backend that is asked for, if any, and by what. The variable may ask for other operations'."""
    if name is None:
        name = asked_for()
        return name if name == REFERENCE or name in BACKENDS else None, 'the variable MMDAT_BACKEND'
    check_name(name, 'the argument `backend`', [REFERENCE, *BACKENDS])
    return name, 'the argument `backend`'
