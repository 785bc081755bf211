"""What attentions in pieces, the MLP and the sampling of keys must do, whatever computes them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..ops import (
    explain_mlp,
    explain_neighborhood_attention,
    explain_sampling,
    explain_window_attention,
    mlp,
    neighborhood_attention_layer,
    sample_features,
    window_attention,
)
from ..ops.deformable.comparison import random_features, relative_errors
from ..ops.ladder import REFERENCE
from ..ops.windows import shift_masks
from .cases import GRADIENT_LIMIT, HALF, OUT_LIMIT, Case, Finding, NotServedError, Subject
from .environment import variable

CHANNELS, HEADS, WINDOW = 96, 3, 7  # of the first stage of DAT-T; neighbourhoods are as wide
# of the arguments, the first
NUM_LEARNED = {window_attention: 6, neighborhood_attention_layer: 6, mlp: 5, sample_features: 2}

_PROJECTIONS = (3 * CHANNELS, CHANNELS), (3 * CHANNELS,), (CHANNELS, CHANNELS), (CHANNELS,)


def window_inputs(dtype: torch.dtype, device: torch.device | str, shift: int = 4) -> list:
    """Arguments of `window_attention`: a map that is no whole number of windows."""
    area = WINDOW**2
    shapes = [(2, 58, 87, CHANNELS), *_PROJECTIONS, (HEADS, area, area)]
    masks = shift_masks(WINDOW, shift).to(device, dtype) if shift else None
    return [*_random(shapes, dtype, device), masks, shift]


def neighborhood_inputs(dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
    """Arguments of `neighborhood_attention_layer`: a map that is no whole number of tiles."""
    table = HEADS, 2 * WINDOW - 1, 2 * WINDOW - 1
    return _random([(2, 29, 44, CHANNELS), *_PROJECTIONS, table], dtype, device)


def mlp_inputs(dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
    """Arguments of `mlp`: a map of several chunks for the threads of a small machine."""
    shapes = [(2, 64, 104, CHANNELS), (4 * CHANNELS, CHANNELS), (4 * CHANNELS,), (CHANNELS, 4 * CHANNELS)]
    return _random([*shapes, (CHANNELS,)], dtype, device)


def sampling_inputs(dtype: torch.dtype, device: torch.device | str) -> list[Tensor]:
    """Arguments of `sample_features`: positions stay in float32."""
    features, locations, _ = random_features(num_points=1100)
    return [features.to(device, dtype), locations.to(device)]


def _random(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device | str
) -> list[Tensor]:
    """Weights are small, as those of networks are."""
    generator = torch.Generator('cpu').manual_seed(0)
    x, *weights = (torch.randn(shape, generator=generator, device='cpu') for shape in shapes)
    return [t.to(device, dtype) for t in (x, *(w / CHANNELS**0.5 for w in weights))]


def _compare(
    function: Callable[..., Tensor],
    explain: Callable[..., str],
    inputs: Callable[[torch.dtype, torch.device], list],
    dtype: torch.dtype,
    subject: Subject,
) -> Iterator[Finding]:
    """Output and gradients, against the formula in float64 of the same, rounded numbers."""
    arguments = inputs(dtype, subject.device)
    with variable('MMDAT_BACKEND', subject.backend):
        said = explain(*arguments)
        if not said.startswith(f'{subject.backend}: '):
            raise NotServedError(said.partition(f'not {subject.backend}: ')[2] or f'served by {said}')
        ours = _results(function, arguments)
    with variable('MMDAT_BACKEND', REFERENCE):
        truth = _results(function, [t.double() if isinstance(t, Tensor) else t for t in arguments])
    for name, error in relative_errors(ours, truth).items():
        exact = OUT_LIMIT if name == 'out' else GRADIENT_LIMIT
        yield Finding(name, error, exact if dtype == torch.float32 else 8 * torch.finfo(dtype).eps)


def _results(function: Callable[..., Tensor], arguments: Sequence) -> dict[str, Tensor]:
    """Output, and gradients of what has some."""
    tensors = [t.detach().requires_grad_() for t in arguments[: NUM_LEARNED[function]]]
    out = function(*tensors, *arguments[NUM_LEARNED[function] :])
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    grads = torch.autograd.grad(out, tensors, grad_out)
    return {'out': out.detach()} | {f'gradient {index}': grad for index, grad in enumerate(grads)}


def _cases(
    function: Callable[..., Tensor], explain: Callable[..., str], name: str, inputs: dict[str, Callable]
) -> list[Case]:
    return [
        Case(
            name,
            f'{detail}{str(dtype).removeprefix("torch.")}',
            partial(_compare, function, explain, make, dtype),
            of_equations=True,
        )
        for detail, make in inputs.items()
        for dtype in (torch.float32, *HALF)
    ]


# By the names of those that may compute them.
LAYER_CASES = {
    (REFERENCE, 'cpu', 'portable', 'fused'): _cases(
        window_attention,
        explain_window_attention,
        'attention in windows',
        {'': partial(window_inputs, shift=0), 'shifted, ': window_inputs},
    ),
    (REFERENCE, 'fused'): _cases(
        neighborhood_attention_layer,
        explain_neighborhood_attention,
        'attention in neighbourhoods',
        {'': neighborhood_inputs},
    ),
    (REFERENCE, 'portable'): _cases(mlp, explain_mlp, 'MLP', {'': mlp_inputs}),
    (REFERENCE, 'triton'): _cases(
        sample_features, explain_sampling, 'sampling of keys', {'': sampling_inputs}
    ),
}
