from typing import NamedTuple

import torch
from torch import Tensor

from .coordinates import Coordinates


class Inputs(NamedTuple):
    """What `deformable_attention` takes, in the order of its parameters; see there."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias_table: Tensor
    sampling_locations: Tensor
    query_size: tuple[int, int]
    coordinates: Coordinates

    unit = 'logits'

    def size(self) -> int:
        batch, num_heads, num_queries, _ = self.q.shape
        return batch * num_heads * num_queries * self.k.shape[2]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self[:5]

    def dtype(self) -> torch.dtype:
        """In which positions and softmax are exact enough: they need more digits than half precision has."""
        return torch.promote_types(
            self.sampling_locations.dtype, torch.promote_types(self.v.dtype, torch.float32)
        )

    def empty_outputs(self) -> tuple[Tensor, Tensor]:
        """Where a backend writes `out` and `lse`, see `DeformableBackend.forward`."""
        lse_dtype = torch.promote_types(self.q.dtype, torch.float32)
        return _channels_last(self.q), self.q.new_empty(self.q.shape[:-1], dtype=lse_dtype)

    def empty_grads(self) -> tuple[Tensor, ...]:
        """Where a backend writes the gradients of the five tensors."""
        *rows, bias_table, sampling_locations = self.tensors()
        grads = [_channels_last(t) for t in rows]
        return *grads, *(t.new_empty(t.shape) for t in (bias_table, sampling_locations))

    def check_shapes(self) -> None:
        """Raises a `ValueError` if the tensors do not fit each other."""
        q, k, v, bias_table, sampling_locations, query_size, _ = self
        height, width = query_size
        batch, num_heads, num_queries, head_dims = q.shape
        groups = sampling_locations.shape[1]
        if num_queries != height * width:
            raise ValueError(f'query_size={tuple(query_size)} does not fit {num_queries} queries')
        if num_heads % groups or bias_table.shape[0] != num_heads:
            raise ValueError(
                'the heads of q, the tables and the groups must fit each other, got '
                f'{num_heads=}, tables={bias_table.shape[0]}, {groups=}'
            )
        if k.shape != v.shape or k.shape[2] != sampling_locations.shape[2] or not k.shape[2]:
            raise ValueError(
                'k and v need a row for each sampling location, of which there must be one at least, got '
                f'k {tuple(k.shape)}, v {tuple(v.shape)}, {sampling_locations.shape[2]} locations'
            )
        if k.shape[:2] != (batch, num_heads) or k.shape[3] != head_dims:
            raise ValueError(
                'q and k need the same images, heads and channels, got '
                f'q {tuple(q.shape)}, k {tuple(k.shape)}'
            )
        if sampling_locations.shape[0] != batch or sampling_locations.shape[3] != 2:
            raise ValueError(
                f'sampling_locations must be (B, G, N_k, 2) with B = {batch}, got '
                f'{tuple(sampling_locations.shape)}'
            )


def _channels_last(x: Tensor) -> Tensor:
    """An empty `(B, M, N, d)`, laid out as `(B, N, M, d)`."""
    batch, num_heads, length, head_dims = x.shape
    return x.new_empty(batch, length, num_heads, head_dims).transpose(1, 2)
