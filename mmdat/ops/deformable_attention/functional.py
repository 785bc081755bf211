from torch import Tensor

from .coordinates import Coordinates
from .reference import deformable_attention_reference

BACKENDS = {'reference': deformable_attention_reference}


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
        backend: Name of the implementation, `None` to choose. There is only `'reference'` so far.

    Returns:
        `(B, M, H * W, d)`.

    Raises:
        ValueError: If shapes do not fit each other, or `backend` is unknown.
    """
    height, width = query_size
    _, num_heads, num_queries, _ = q.shape
    groups = sampling_locations.shape[1]
    if num_queries != height * width:
        raise ValueError(f'query_size={tuple(query_size)} does not fit {num_queries} queries')
    if num_heads % groups or bias_table.shape[0] != num_heads:
        raise ValueError(
            'the heads of q, the tables and the groups must fit each other, got '
            f'{num_heads=}, tables={bias_table.shape[0]}, {groups=}'
        )
    if k.shape != v.shape or k.shape[2] != sampling_locations.shape[2]:
        raise ValueError(
            'k and v need a row for each sampling location, got '
            f'k {tuple(k.shape)}, v {tuple(v.shape)}, {sampling_locations.shape[2]} locations'
        )
    return _choose_backend(backend)(q, k, v, bias_table, sampling_locations, query_size, coordinates)


def _choose_backend(name: str | None):
    """The one place where a backend is chosen."""
    if name is None:
        return deformable_attention_reference
    if name not in BACKENDS:
        raise ValueError(f'unknown backend {name!r}, the backends are {sorted(BACKENDS)}')
    return BACKENDS[name]
