"""What PyTorch's operators cost on CUDA: kernels, bytes, scratch memory, and whether the host waits for them.

By reading `aten/src/ATen/native/cuda` of PyTorch 2.10, not by measuring. Most operators are one kernel that
reads its inputs and writes its outputs once; what differs stands in the tables here.

What gathers by an index reads the rows that it takes, and not those between them. So as many bytes of its
source count as are taken; or all of them where more are taken, because caches answer for the second time.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten


class Cost(NamedTuple):
    """Of one call of an operator.

    Attributes:
        kernels: Launched, memory sets among them.
        extra: Bytes read and written beside inputs and outputs, by kernels before the last.
        scratch: Bytes that live during the call alone.
    """

    kernels: int
    extra: int = 0
    scratch: int = 0


class Call(NamedTuple):
    """A call of an operator: its arguments in the order of its schema, and what it returned."""

    func: OpOverload
    args: Mapping[str, object]
    out: object

    @classmethod
    def of(cls, func: OpOverload, args: tuple, kwargs: dict, out: object) -> 'Call':
        names = [argument.name for argument in func._schema.arguments]
        return cls(func, {**dict(zip(names, args)), **kwargs}, out)

    def inputs(self) -> list[Tensor]:
        return tensors(self.args)

    def outputs(self) -> list[Tensor]:
        return tensors(self.out)


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def nbytes(x: Tensor) -> int:
    """Bytes that a kernel touches: numbers that are repeated by strides of zero count once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def count_bytes(call: Call, on_device: Callable[[Tensor], bool]) -> int:
    """Bytes read and written by a kernel: every input once, or what is gathered of it, and every output."""
    written = [t for t in call.outputs() if on_device(t)]
    read = [t for t in call.inputs() if on_device(t)]
    if _name(call.func) in _ONLY_WRITE or 'out' in call.func._overloadname:
        read = [t for t in read if not any(t is out for out in written)]
    source, size = call.args.get(_GATHERS.get(_name(call.func))), sum(map(nbytes, written))
    return size + sum(min(nbytes(t), size) if t is source else nbytes(t) for t in read)


def cost(call: Call) -> Cost:
    """What an operator costs on CUDA that is one there, beside the bytes of `count_bytes`."""
    name = _name(call.func)
    if call.func.is_view or name in _NO_KERNEL or not any(t.numel() for t in call.outputs() or call.inputs()):
        return Cost(0)
    rule = _RULES.get(name, 1)
    kernels, extra, scratch = rule(call) if callable(rule) else Cost(rule)
    if not callable(rule) and rule > 1:
        extra += (rule - 1) * sum(map(nbytes, call.outputs()))
    copies = [t for key in _CONTIGUOUS.get(name, ()) if _needs_copy(t := call.args.get(key))]
    if name in _PRODUCTS:
        copies += [t for t in call.inputs() if t.ndim > 1 and not _fits_blas(t)]
    copied = sum(t.numel() * t.element_size() for t in copies)
    return Cost(kernels + len(copies), extra + 2 * copied, scratch + copied)


def reads_host(call: Call) -> bool:
    """Whether the host waits for numbers from the device."""
    name = _name(call.func)
    if name in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
        masks = [t for t in tensors(call.args['indices']) if t.dtype in (torch.bool, torch.uint8)]
        fills = name != 'index' and call.args['values'].numel() == 1  # a masked fill
        return bool(masks) and not fills
    return name in _READ_HOST


def _name(func: OpOverload) -> str:
    return func._schema.name.split('::')[1]


# What has no kernel and is no view for PyTorch.
_NO_KERNEL = {
    *'_unsafe_view unsafe_split unsafe_split_with_sizes unsafe_chunk lift_fresh lift set_ resize_'.split(),
    *'empty empty_like new_empty empty_strided new_empty_strided empty_permuted'.split(),
    *'_local_scalar_dense is_pinned is_same_size _has_same_storage_numel result_type record_stream'.split(),
}
_READ_HOST = {
    *'_local_scalar_dense item is_nonzero nonzero equal masked_select'.split(),
    *'_unique2 unique_dim unique_consecutive bincount repeat_interleave'.split(),
}
_ONLY_WRITE = {'copy_', 'fill_', 'zero_', 'bernoulli_', 'uniform_', 'normal_', 'random_'}
# By operator, the argument that it gathers from.
_GATHERS = {'index_select': 'self', 'index': 'self', 'gather': 'self', 'take': 'self', 'embedding': 'weight'}
_PRODUCTS = {'mm', 'addmm', 'addmm_', 'bmm', 'baddbmm', 'baddbmm_'}

# Arguments of which a contiguous copy is made if they are none.
_CONTIGUOUS = {
    'native_layer_norm': ('input',),
    'native_layer_norm_backward': ('grad_out', 'input'),
    'native_group_norm': ('input',),
    'native_group_norm_backward': ('grad_out', 'input'),
    '_softmax': ('self',),
    '_log_softmax': ('self',),
    '_softmax_backward_data': ('grad_output', 'output'),
    '_log_softmax_backward_data': ('grad_output', 'output'),
    'embedding': ('indices',),
}


def _needs_copy(x: object) -> bool:
    return isinstance(x, Tensor) and not x.is_contiguous()


def _fits_blas(x: Tensor) -> bool:
    """Whether cuBLAS takes a matrix, or its transpose, as it lies."""
    rows, columns = x.stride()[-2:]
    height, width = x.shape[-2:]
    return (
        (columns == 1 and rows >= max(width, 1))
        or (rows == 1 and columns >= max(height, 1))
        or 1 in (height, width)
    )


def _convolution(call: Call) -> Cost:
    """cuDNN adds the bias in a second kernel; the depth-wise kernels of PyTorch have it, but want NCHW."""
    args = call.args
    x, weight, bias = args['input'], args['weight'], args['bias']
    if _is_native_depthwise(call, bias):
        copied = x.numel() * x.element_size() if not x.is_contiguous() else 0
        return Cost(1 + bool(copied), 2 * copied, copied)
    layout, copied = _copies_to_layout(call.out, x, weight)
    return Cost(
        1 + layout + (bias is not None),
        2 * copied + (2 * nbytes(call.out) if bias is not None else 0),
        copied,
    )


def _convolution_backward(call: Call) -> Cost:
    """A kernel for each gradient; that of the bias is a sum."""
    args = call.args
    grad, x, weight = args['grad_output'], args['input'], args['weight']
    needs_x, needs_weight, needs_bias = args['output_mask']
    kernels = needs_x + needs_weight + needs_bias
    extra = (kernels - 1) * nbytes(grad)
    if _is_native_depthwise(call, None):
        copies = [t for t in (grad, x) if not t.is_contiguous()]
        copied = sum(t.numel() * t.element_size() for t in copies)
        return Cost(kernels + len(copies), extra + 2 * copied, copied)
    layout, copied = _copies_to_layout(x, grad, weight)
    return Cost(kernels + layout, extra + 2 * copied, copied)


def _is_native_depthwise(call: Call, bias: Tensor | None) -> bool:
    args = call.args
    backend = torch._C._select_conv_backend(
        args['input'],
        args['weight'],
        bias,
        list(args['stride']),
        list(args['padding']),
        list(args['dilation']),
        args['transposed'],
        list(args['output_padding']),
        args['groups'],
        [args['weight'].shape[0]] if bias is not None else None,
    )
    return backend == torch._C._ConvBackend.CudaDepthwise2d


def _copies_to_layout(like: Tensor, *operands: Tensor) -> tuple[int, int]:
    """How many operands, and of how many bytes, cuDNN copies into the layout that it computes in."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    copied = [t for t in operands if not t.is_contiguous(memory_format=layout)]
    return len(copied), sum(t.numel() * t.element_size() for t in copied)


def _layer_norm_backward(call: Call) -> Cost:
    """The input's gradient, and those of weight and bias, which tall maps sum up in two steps."""
    needs = call.args['output_mask']
    rows = call.args['input'].numel() // max(prod(call.args['normalized_shape']), 1)
    affine = any(needs[1:])
    kernels = needs[0] + affine + (2 if affine and rows > 2**16 else 0)
    return Cost(kernels, nbytes(call.args['grad_out']) + nbytes(call.args['input']) if affine else 0)


def _addmm(call: Call) -> Cost:
    """The epilogue of the product adds a bias of one dimension; anything else is copied first."""
    return Cost(1) if call.args['self'].ndim == 1 else Cost(2, 2 * nbytes(call.out))


def _pad(call: Call) -> Cost:
    """The output is filled, then the input is copied into it."""
    return Cost(2, nbytes(call.out)) if any(call.args['pad']) else Cost(1)


def _index(call: Call) -> Cost:
    """Masks are turned into positions first."""
    masks = [t for t in tensors(call.args['indices']) if t.dtype in (torch.bool, torch.uint8)]
    return Cost(
        1 + _NONZERO * len(masks), sum(9 * t.numel() for t in masks), sum(8 * t.numel() for t in masks)
    )


def _index_put(call: Call) -> Cost:
    """Where values are accumulated, the positions are sorted first."""
    if call.args.get('accumulate'):
        positions = tensors(call.args['indices'])
        count = max((t.numel() for t in positions), default=0)
        return Cost(8, 80 * count, 40 * count)
    functional = call.func._schema.name == 'aten::index_put'
    return _index(call)._replace(kernels=_index(call).kernels + functional)


def _flash_attention_backward(call: Call) -> Cost:
    """The queries' gradient is summed up in float32: set to zero, prepared, summed, converted."""
    q = call.args['query']
    return Cost(4, 12 * q.numel(), 4 * q.numel())


def _efficient_attention_backward(call: Call) -> Cost:
    """In half precision the queries' gradient is summed up in float32, set to zero before."""
    q = call.args['query']
    return Cost(1) if q.dtype == torch.float32 else Cost(2, 8 * q.numel(), 4 * q.numel())


def _foreach(call: Call) -> Cost:
    """One kernel takes up to 320 pieces of 65536 numbers, and a few dozen tensors."""
    lists = [value for value in call.args.values() if isinstance(value, list | tuple) and tensors(value)]
    limit = (110, 64, 48, 36, 30)[min(len(lists) + 1, 5) - 1]
    first = tensors(lists[0])
    pieces = sum(-(-t.numel() // 65536) for t in first)
    return Cost(max(-(-len(first) // limit), -(-pieces // 320)))


_NONZERO = 4
# Kernels of an operator, each beyond the first writing the outputs once more; or a function of the call.
_RULES: dict[str, int | Callable[[Call], Cost]] = {
    'convolution': _convolution,
    'convolution_backward': _convolution_backward,
    'native_layer_norm_backward': _layer_norm_backward,
    'addmm': _addmm,
    'baddbmm': 2,
    'constant_pad_nd': _pad,
    'index': _index,
    'index_put': _index_put,
    'index_put_': _index_put,
    '_index_put_impl_': _index_put,
    '_scaled_dot_product_flash_attention': 1,
    '_scaled_dot_product_flash_attention_backward': _flash_attention_backward,
    '_scaled_dot_product_efficient_attention': 1,
    '_scaled_dot_product_efficient_attention_backward': _efficient_attention_backward,
    # set to zero, or copied, first
    **dict.fromkeys(
        'masked_fill scatter scatter_add index_add index_fill slice_scatter select_scatter '
        'slice_backward select_backward unfold_backward diagonal_backward '
        'grid_sampler_2d_backward upsample_bilinear2d_backward max_pool2d_with_indices_backward '
        'nll_loss_backward nll_loss2d_backward avg_pool2d_backward'.split(),
        2,
    ),
    'native_batch_norm': 2,
    'native_batch_norm_backward': 2,
    'native_group_norm': 3,
    'native_group_norm_backward': 4,
    'nonzero': _NONZERO,
    'masked_select': _NONZERO + 1,
    'sort': 4,
    'argsort': 4,
    'topk': 4,
    '_unique2': 6,
    'randperm': 4,
    'cumsum': 2,
    'embedding_dense_backward': 6,
    **{name: _foreach for name in dir(torch) if name.startswith('_foreach_')},
    '_fused_adamw_': _foreach,
    '_amp_foreach_non_finite_check_and_unscale_': _foreach,
}
