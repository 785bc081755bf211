import os
import os.path as osp
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..apis.images import Preparation
from ..apis.models import find_data
from ..demo.shapes import draw_scene
from ..errors import UserError
from .description import describe, normalise, pad_size_divisor
from .onnx import OPSET, Run, check_packages, load_onnx, runtime_name, write_onnx
from .parts import Part, part_of
from .program import load_program, write_program
from .substitutes import upsampling_by_factor

LIMIT = 1e-4  # of the largest difference, as a share of the largest value of an output
MIN_SIDE = STRIDE = 32


@dataclass(frozen=True)
class Comparison:
    """An exported file beside PyTorch.

    Attributes:
        shape: Of the input, `(B, 3, H, W)`.
        differences: Of each output, by name: the largest difference, as a share of its largest value.
    """

    shape: tuple[int, ...]
    differences: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.differences.items(), key=lambda item: (np.isnan(item[1]), item[1]))

    def __str__(self) -> str:
        name, difference = self.worst
        batch, _, height, width = self.shape
        return f'batch {batch}, {height} x {width}: {difference:.1e} ({name})'


@dataclass(frozen=True)
class Report:
    """What was exported, and how it compares."""

    path: str
    kind: str
    form: str
    inputs: str
    outputs: Sequence[str]
    runtime: str
    comparisons: list[Comparison] = field(default_factory=list)

    def __str__(self) -> str:
        megabytes = osp.getsize(self.path) / 1e6
        return '\n'.join(
            [
                f'{self.path}: {self.kind}, {self.form}, {megabytes:.1f} MB',
                f'input: {self.inputs}, normalised; outputs: {", ".join(self.outputs)}',
                f'largest difference from PyTorch in {self.runtime}, as a share of the largest value of an '
                f'output (limit {LIMIT:.0e}):',
                *(f'  {comparison}' for comparison in self.comparisons),
            ]
        )


def export_model(
    model: nn.Module,
    path: str,
    images: Sequence[str] = (),
    shape: tuple[int, int] | None = None,
    dynamic: bool = False,
    backbone_only: bool = False,
    grid_sample: bool = False,
) -> Report:
    """Exports a model, compares the file with PyTorch, and keeps it if both agree.

    The file takes normalised images, and says in its metadata how these are made (`describe`). It takes
    batches of every size.

    Args:
        model: On the CPU, as `init_model` gives it.
        path: Ends in `.onnx`, or `.pt2` for a program of `torch.export`.
        images: Files with which both are compared; by default pictures of shapes.
        shape: Height and width of the images in pixels. By default those of the config, see `find_shape`.
        dynamic: Images of every size; for `.pt2` see `write_program`. Both are then compared at a second
            size, too.
        backbone_only: The backbone only, of any model.
        grid_sample: Sample by `GridSample` in ONNX. By default features and biases are sampled by gathers,
            because TensorRT miscompiles `GridSample`.

    Raises:
        UserError: If the model cannot be exported, packages are missing, the file cannot be written, or the
            file and PyTorch differ by more than `LIMIT`; then there is no file.
    """
    check_target(path)
    part = part_of(model, backbone_only)
    is_onnx = path.endswith('.onnx')
    shape = shape or find_shape(model)
    if min(shape) < MIN_SIDE:
        raise UserError(
            f'images must be at least {MIN_SIDE} pixels high and wide, got {shape[0]} x {shape[1]}'
        )
    photos = _read(model, images, shape)
    temporary = _beside(path)
    try:
        example = _batch(model, photos, 0, 1 if is_onnx else 2, shape)
        described = describe(model, part)
        try:
            with upsampling_by_factor(part):
                if is_onnx:
                    write_onnx(part, example, temporary, described, dynamic, grid_sample)
                else:
                    write_program(part, example, temporary, described, dynamic)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f'{part.kind} of {type(model).__name__}: {_refusal(error)}') from error
        run = load_exported(temporary)
        cases = [(1, shape), (2, shape)]
        if dynamic:
            cases.append((2, _other(part, shape) if is_onnx else _near(shape)))
        report = Report(
            path,
            part.kind,
            f'ONNX opset {OPSET}' if is_onnx else 'torch.export',
            f'(batch, 3, {"height, width" if dynamic else f"{shape[0]}, {shape[1]}"})',
            part.names,
            runtime_name() if is_onnx else f'torch {torch.__version__}',
            [compare(part, run, _batch(model, photos, i, *case)) for i, case in enumerate(cases)],
        )
        for comparison in report.comparisons:
            if not comparison.worst[1] <= LIMIT:
                raise UserError(
                    f'{path} is not kept, because it differs from PyTorch by more than {LIMIT:.0e} of the '
                    f'largest value: {comparison}'
                )
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)
    return report


def check_target(path: str) -> None:
    """Raises a `UserError` if files of this name cannot be exported, or packages are missing."""
    if not path.endswith(('.onnx', '.pt2')):
        raise UserError(f'{path} must end in .onnx or .pt2')
    if path.endswith('.onnx'):
        check_packages()


def load_exported(path: str) -> Run:
    """A function from normalised images to the outputs of an exported file."""
    return load_onnx(path) if path.endswith('.onnx') else load_program(path)


def compare(part: Part, run: Run, images: Tensor) -> Comparison:
    """Runs an exported file and the part of the model on the same images."""
    with torch.no_grad():
        expected = part(images)
    differences = {}
    for name, ours, theirs in zip(part.names, run(images), expected, strict=True):
        if ours.shape != theirs.shape:
            raise UserError(
                f'output {name} of the exported file is {tuple(ours.shape)} where PyTorch has '
                f'{tuple(theirs.shape)}'
            )
        scale = theirs.abs().max().clamp(min=torch.finfo(theirs.dtype).tiny)
        differences[name] = ((ours - theirs).abs().max() / scale).item()
    return Comparison(tuple(images.shape), differences)


def find_shape(model: nn.Module) -> tuple[int, int]:
    """Height and width of images for which a model is made.

    The crops of a segmentor; the `scale` of a detector's test pipeline, as an image that is wider than high,
    padded as the model does; `img_size` of the backbone.

    Raises:
        UserError: If the config does not tell.
    """
    size = getattr(model.data_preprocessor, 'size', None) or model.cfg.get('crop_size')
    if size is not None:
        return tuple(size)
    divisor = pad_size_divisor(model)
    if divisor > 1:
        for step in find_data(model.cfg).get('pipeline') or ():
            if isinstance(scale := step.get('scale'), list | tuple) and len(scale) == 2:
                return tuple(-(-side // divisor) * divisor for side in sorted(scale))
    size = model.cfg.model.backbone.get('img_size', 224 if 'head' in model.cfg.model else None)
    if size is None:
        raise UserError('the config does not tell the size of images: --shape HEIGHT WIDTH does')
    return size, size


def _read(model: nn.Module, images: Sequence[str], shape: tuple[int, int]) -> list[np.ndarray]:
    if images:
        prepare = Preparation(model.cfg)
        return [prepare.read(image) for image in images]
    return [draw_scene(np.random.default_rng(seed), *shape)[0] for seed in range(3)]


def _batch(
    model: nn.Module, photos: Sequence[np.ndarray], first: int, number: int, shape: tuple[int, int]
) -> Tensor:
    """Some of the photos, stretched to the shape and normalised."""
    height, width = shape
    chosen = [photos[(first + i) % len(photos)] for i in range(number)]
    return normalise(model, np.stack([cv2.resize(photo, (width, height)) for photo in chosen]))


def _other(part: Part, shape: tuple[int, int]) -> tuple[int, int]:
    """Another size, of another aspect."""
    height, width = shape
    if part.kind == 'detector':  # necks may need what the largest stride divides, to which detectors pad
        return (height // STRIDE + 1) * STRIDE, max(2 * width // 3 // STRIDE, 1) * STRIDE
    return max(3 * height // 4, MIN_SIDE) | 1, max(2 * width // 3, MIN_SIDE) | 1


def _near(shape: tuple[int, int]) -> tuple[int, int]:
    """Another size that a program takes, if the windows of its maps are like those of `shape`."""
    return shape[0] + 5, shape[1] - 3


def _beside(path: str) -> str:
    folder, name = osp.split(path)
    try:
        os.makedirs(folder or '.', exist_ok=True)
        beside = osp.join(folder, f'.{os.getpid()}.{name}')
        with open(beside, 'wb'):
            return beside
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.filename}: {error.strerror}') from error


def _refusal(error: Exception) -> str:
    reason = ' '.join(str(error).split())[:300]
    return f'the exporter refuses it ({type(error).__name__}: {reason})'
