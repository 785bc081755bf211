"""ONNX by the exporter that follows traces, and its files in onnxruntime."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ..errors import UserError
from .parts import Part
from .substitutes import substituted

OPSET = 17  # the first with LayerNormalization; TensorRT reads it from 8.6 on
INPUT = 'input'

Run = Callable[[Tensor], list[Tensor]]


def write_onnx(
    part: Part, example: Tensor, path: str, described: Mapping[str, str], dynamic: bool, grid_sample: bool
) -> None:
    """Writes a part of a model, for batches of every size.

    By PyTorch's exporter of traces, which is many times as fast as the newer one of `torch.export` graphs. It
    is told to infer no shapes: where its inference knows nothing, it takes for a constant what the example
    had.

    Args:
        part: What is exported.
        example: `(B, 3, H, W)`.
        path: Where the file goes.
        described: Goes into the file's metadata.
        dynamic: For images of every size as well.
        grid_sample: Use `GridSample`, else gathers.
    """
    onnx = _package('onnx')
    axes = _dynamic_axes(part, example, dynamic)
    with torch.no_grad(), substituted(grid_sample), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        _export()(
            part,
            (example,),
            path,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(part.names),
            dynamic_axes=axes,
            onnx_shape_inference=False,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(described))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def load_onnx(path: str) -> Run:
    """A function from images to the outputs, by onnxruntime on the CPU with PyTorch's number of threads."""
    runtime = _package('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {INPUT: images.contiguous().numpy()})
    ]


def runtime_name() -> str:
    return f'onnxruntime {_package("onnxruntime").__version__}'


def check_packages() -> None:
    """Raises a `UserError` if a package is missing."""
    for name in ('onnx', 'onnxruntime'):
        _package(name)


def _dynamic_axes(part: Part, example: Tensor, dynamic: bool) -> dict[str, dict[int, str]]:
    axes = {INPUT: {0: 'batch'} | ({2: 'height', 3: 'width'} if dynamic else {})}
    with torch.no_grad():
        ranks = [output.ndim for output in part(example)]
    for name, rank in zip(part.names, ranks):
        sides = {2: f'{name}_height', 3: f'{name}_width'} if dynamic and rank == 4 else {}
        axes[name] = {0: 'batch'} | sides
    return axes


def _export() -> Callable[..., None]:
    """`torch.onnx.export(..., dynamo=False)`, which does not show the switch of its shape inference."""
    for module in ('torch.onnx._internal.torchscript_exporter.utils', 'torch.onnx.utils'):
        try:
            return import_module(module)._export
        except (ImportError, AttributeError):
            continue
    raise UserError(f'PyTorch {torch.__version__} has no exporter of traces to ONNX: take PyTorch 2.10')


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f'ONNX files need the packages onnx and onnxruntime ({error}): pip install onnx onnxruntime'
        ) from error
