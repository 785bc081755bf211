"""Bilinear sampling of features at deformed points: by PyTorch's operation, or on CUDA by Triton's kernels.

What PyTorch's operation takes and returns is NCHW and float32 here, so each pass copies the map, and on CUDA
the gradient of the map is summed by atomic additions, in any order. The kernels (`../triton/sampling.py`)
read and write channels-last maps in their own dtype, and sum in one order.
"""

import math
from collections.abc import Iterator
from functools import partial
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from ..ladder import choose_layer, explain_layer, transform_reason
from ..sizes import is_traced
from ..triton import card
from ..triton.self_check import triton_verdict
from .backends.base import CheckedBackend
from .comparison import Trial, random_features
from .operator import Operators, refuse_second_derivatives
from .reference import sample_features_reference


class SampledInputs(NamedTuple):
    """What `sample_features` takes; see there."""

    features: Tensor
    sampling_locations: Tensor
    dtype: torch.dtype

    unit = 'points'

    def size(self) -> int:
        return self.sampling_locations[..., 0].numel()

    def check_shapes(self) -> None:
        """Raises a `ValueError` if the tensors do not fit each other."""
        features, locations = self.features.shape, self.sampling_locations.shape
        if (
            len(features) != 4
            or len(locations) != 4
            or features[0] != locations[0]
            or locations[3] != 2
            or not locations[1]
            or features[3] % locations[1]
        ):
            raise ValueError(
                'features must be (B, H, W, C) and sampling_locations (B, G, N, 2), where G divides C, got '
                f'{tuple(features)} and {tuple(locations)}'
            )

    def empty_output(self) -> Tensor:
        """`(B, N, C)`."""
        batch, _, _, channels = self.features.shape
        return self.features.new_empty(batch, self.sampling_locations.shape[2], channels, dtype=self.dtype)

    def empty_grads(self) -> tuple[Tensor, Tensor]:
        """Contiguous, of features and locations."""
        return tuple(t.new_empty(t.shape) for t in (self.features, self.sampling_locations))


def sample_features(features: Tensor, sampling_locations: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Bilinear sampling `phi(x; p + dp)` of Equations (7) and (8), zero outside the map.

    Triton's kernels do it on CUDA where they can; `explain_sampling` says whether. Compilers then see it as
    one operation, `mmdat::sample_features_triton`. There are first derivatives only, as of `F.grid_sample`.

    Args:
        features: Channels-last map `(B, H, W, C)`.
        sampling_locations: `(B, G, N, 2)`, `(y, x)`, normalised such that -1 and +1 are the centres of the
            border pixels; each group samples its own `C / G` channels.
        dtype: Of the result; by default that of `features`.

    Returns:
        `(B, N, C)`, interpolated in the dtype of `sampling_locations`, by the kernels in float32.

    Raises:
        ValueError: If shapes do not fit each other.
    """
    inputs = SampledInputs(features, sampling_locations, dtype or features.dtype)
    if is_traced(*features.shape, *sampling_locations.shape):
        return sample_features_reference(*inputs)
    inputs.check_shapes()
    if choose_layer(_LADDER, inputs) is None:
        return sample_features_reference(*inputs)
    return OPERATORS.forward(features, sampling_locations.float(), inputs.dtype)


def explain_sampling(features: Tensor, sampling_locations: Tensor, dtype: torch.dtype | None = None) -> str:
    """What computes `sample_features` of the same arguments, and why: `'triton: ...'`."""
    inputs = SampledInputs(features, sampling_locations, dtype or features.dtype)
    inputs.check_shapes()
    return explain_layer(_LADDER, inputs)


class TritonSampling(CheckedBackend):
    """Triton's kernels, in bfloat16, float16 and float32; positions and sums are float32."""

    name = 'triton'
    operation = 'the sampling of keys'
    device_type = 'cuda'

    def not_supported_reasons(self, inputs: SampledInputs) -> list[str]:
        features, locations, dtype = inputs
        device, (_, height, width, channels), num_points = features.device, features.shape, locations.shape[2]
        if device.type != self.device_type:
            return [f'the tensors are on {device.type}']
        reasons = [reason for reason in (transform_reason(),) if reason]
        for one in {features.dtype, locations.dtype, dtype}:
            if one != torch.float32 and one not in card.HALF:
                reasons.append(f'the kernels compute in float32 and half precision, not in {one}')
        if features.dtype not in (torch.float32, dtype):
            reasons.append(f'the kernels make {dtype} of the same or of float32, not of {features.dtype}')
        if channels * max(height * width, num_points) >= 2**31:
            reasons.append('an image has 2^31 numbers or more')
        if not reasons:  # what is not needed is not compiled
            # kernels are compiled for so many channels, so a compiler must not take them for variable
            reason = obstacle(device, features.dtype, dtype, index(channels // locations.shape[1]))
            if reason is not None:
                reasons.append(reason)
        return reasons

    def forward(self, inputs: SampledInputs, out: Tensor) -> None:
        """Fills `out`, which is not initialised."""
        if out.numel():
            from ..triton import sampling

            with torch.cuda.device_of(out):
                sampling.forward(inputs.features, inputs.sampling_locations, out)

    def backward(self, inputs: SampledInputs, grad_out: Tensor, grads: tuple[Tensor, Tensor]) -> None:
        """Fills `grads`, those of features and positions, which are not initialised."""
        if not grad_out.numel():
            for grad in grads:
                grad.zero_()
            return
        from ..triton import sampling

        with torch.cuda.device_of(grad_out):
            sampling.backward(grad_out, inputs.features, inputs.sampling_locations, grads)

    def trials(self, dtype: torch.dtype) -> Iterator[Trial]:
        for shape, features_dtype in zip(SHAPES, (torch.float32, dtype)):
            features, locations, grad_out = random_features(**shape)
            inputs, grad_out = (
                SampledInputs(features.to(features_dtype), locations, dtype),
                grad_out.to(dtype),
            )
            tensors = [t.double().requires_grad_() for t in inputs[:2]]
            out = sample_features_reference(*tensors, torch.float64)
            grads = torch.autograd.grad(out, tensors, grad_out.double())
            expected = dict(zip(_RESULTS, (out.detach(), *grads)))
            yield Trial(expected, partial(self._run, inputs, grad_out))

    def _run(self, inputs: SampledInputs, grad_out: Tensor, device: torch.device) -> dict[str, Tensor]:
        inputs = inputs._replace(**{name: getattr(inputs, name).to(device) for name in _RESULTS[1:]})
        out, *grads = (t.fill_(math.nan) for t in (inputs.empty_output(), *inputs.empty_grads()))
        self.forward(inputs, out)
        self.backward(inputs, grad_out.to(device), tuple(grads))
        return {name: result.cpu() for name, result in zip(_RESULTS, (out, *grads))}


# More points than are looked at together, more channels than a program holds, no whole number of tiles.
SHAPES = (dict(), dict(map_size=(9, 65), num_points=1100, batch=1, groups=1, channels=160))
_RESULTS = ('out', 'features', 'sampling_locations')
_BACKEND = TritonSampling()
_LADDER = (_BACKEND,)


@torch.compiler.assume_constant_result
def obstacle(device: torch.device, features: torch.dtype, dtype: torch.dtype, channels: int) -> str | None:
    """Why the kernels cannot be used on this card, or `None` if they can.

    Compiles both passes when it is asked for the first time, then compares them with the equations.

    Args:
        device: Of the tensors.
        features: Dtype of the features.
        dtype: Of what is sampled.
        channels: Of a group.
    """
    return (
        card.obstacle(device)
        or card.compile_obstacle(device, _BACKEND.operation, _launches, (features, dtype, channels))
        or triton_verdict(_BACKEND, device, dtype)
    )


def _launches(case: tuple) -> list:
    from ..triton.sampling import Case, launches

    return launches(Case(*case))


def _register(backend: TritonSampling) -> Operators:
    """Registers the two passes with PyTorch, for autograd and `torch.compile`."""
    name = 'mmdat::sample_features_triton'
    settings = dict(mutates_args=(), device_types=backend.device_type)

    def forward(*args) -> Tensor:
        inputs = _checked(args)
        out = inputs.empty_output()
        backend.forward(inputs, out)
        return out

    def backward(grad_out: Tensor, *args) -> tuple[Tensor, Tensor]:
        inputs = _checked(args)
        if grad_out.shape != inputs.empty_output().shape:
            raise ValueError(f'{name}_backward: grad_out {tuple(grad_out.shape)} does not fit the points')
        grads = inputs.empty_grads()
        backend.backward(inputs, grad_out.to(inputs.dtype), grads)
        return grads

    def _checked(args) -> SampledInputs:
        inputs = SampledInputs(*args)
        inputs.check_shapes()
        if inputs.sampling_locations.dtype != torch.float32:
            raise ValueError(f'{name} takes positions of float32, got {inputs.sampling_locations.dtype}')
        if reasons := backend.not_supported_reasons(inputs):
            raise ValueError(f'{name} cannot serve: {"; ".join(reasons)}')
        return inputs

    parameters = 'Tensor features, Tensor sampling_locations, ScalarType dtype'
    forward_op = custom_op(name, forward, schema=f'({parameters}) -> Tensor', **settings)
    backward_op = custom_op(
        f'{name}_backward',
        backward,
        schema=f'(Tensor grad_out, {parameters}) -> (Tensor, Tensor)',
        **settings,
    )
    forward_op.register_fake(lambda *args: SampledInputs(*args).empty_output())
    backward_op.register_fake(lambda grad_out, *args: SampledInputs(*args).empty_grads())

    def setup_context(ctx, inputs, output):
        *tensors, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx, grad_out):
        return *backward_op(grad_out, *ctx.saved_tensors, ctx.dtype), None

    forward_op.register_autograd(differentiate, setup_context=setup_context)
    backward_op.register_autograd(refuse_second_derivatives)
    return Operators(forward_op, backward_op)


OPERATORS = _register(_BACKEND)
