from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from .contents import Weights, interpret
from .errors import CheckpointError, join_names
from .files import read_checkpoint
from .fitting import LoadReport, fit, resize_bias_tables
from .identity import check_identity
from .kinds import check_kind
from .locations import find_checkpoint


def load_pretrained(
    backbone: nn.Module, checkpoint: str, prefix: str | None = None, generation: str | None = None
) -> LoadReport:
    """Loads a file into a backbone; what does not fit is an error.

    Takes the authors' files, classifiers and whole detectors and segmentors, and files of MMEngine that hold
    a bare backbone or a model with one. Bias tables of other sizes are resized. What else is left out, or
    left as initialised, is in the log; see `fit`.

    Args:
        backbone: A `DAT`.
        checkpoint: Path, `http(s)://` address, or `mmdat://` and the name of a released file.
        prefix: Where the backbone is in the file's model. By default `backbone.`, or the root.
        generation: `'cvpr' | 'pp'`, for files that do not tell: the authors' of another name.

    Raises:
        CheckpointError: If the file cannot be read, is of another generation or arch, or has weights
            missing, unexpected or of another shape; names them.
    """
    content = read_checkpoint(find_checkpoint(checkpoint))
    weights = interpret(content, checkpoint, prefix, generation)
    fitted, report = _fit_backbone(
        weights, backbone, ", in init_cfg=dict(type='Pretrained', ..., generation=...)"
    )
    backbone.load_state_dict(fitted)
    print_log(str(report), logger='current')
    return report


def adapt_state_dict(state_dict: dict[str, Any], backbone: nn.Module, prefix: str) -> None:
    """Makes a state dict fit a `DAT`, in place, whoever is about to load it.

    Weights of the authors get their names here, as in `load_pretrained`, and bias tables of other sizes are
    resized.

    Args:
        state_dict: Of a model.
        backbone: The `DAT`.
        prefix: Where it is in the model, such as `'backbone.'`.

    Raises:
        CheckpointError: If there is nothing for the backbone, which would stay as initialised; if weights of
            the authors do not fit it, or do not tell their generation.
    """
    source = f'the state dict for {prefix.removesuffix(".")}' if prefix else 'the state dict'
    names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
    parameters = {name: p.detach() for name, p in backbone.named_parameters()}
    if any(name.startswith('patch_proj.') for name in names):
        of_authors = {f'backbone.{name}': state_dict.pop(prefix + name) for name in names}
        fitted, report = _fit_backbone(
            interpret({'state_dict': of_authors}, source),
            backbone,
            ", in init_cfg=dict(type='Pretrained', checkpoint=FILE, generation=...) of the backbone",
        )
        message = str(report)
    else:
        known = tuple(f'{part}.' for part, _ in backbone.named_children())
        if parameters and not any(name.startswith(known) for name in names):
            raise CheckpointError(
                f'{source} holds no weights of a DAT ({join_names(names, 5) or "nothing at all"}), so the '
                'backbone would stay random: classifiers of the authors load by init_cfg=dict('
                "type='Pretrained', checkpoint=FILE) of the backbone"
            )
        tables = {name: state_dict[prefix + name] for name in names if name in parameters}
        fitted, resized = resize_bias_tables(tables, parameters)
        if not resized:
            return
        message = f'{source}: resized (bicubic): {join_names(resized)}'
    state_dict.update({prefix + name: value for name, value in fitted.items()})
    print_log(message, logger='current')


def _fit_backbone(weights: Weights, backbone: nn.Module, where: str) -> tuple[dict[str, Tensor], LoadReport]:
    """The values to load, by the backbone's own names, and the report, which is free of problems."""
    if not weights.identity:
        names = join_names(weights.state_dict, 5)
        raise CheckpointError(f'{weights.source} holds no DAT, but {names}')
    check_weights(weights, backbone, where)
    target = {f'backbone.{name}': p.detach() for name, p in backbone.named_parameters()}
    fitted, report = fit(weights, target, backbone_only=True)
    report.check()
    return {key.removeprefix('backbone.'): value for key, value in fitted.items()}, report


def load_model(
    model: nn.Module, checkpoint: str, generation: str | None = None, ignore: tuple[str, ...] = ()
) -> dict:
    """Loads a file into a whole model of MMEngine's libraries; what does not fit is an error.

    Args:
        model: With or without a `DAT`.
        checkpoint: As in `load_pretrained`.
        generation: As there.
        ignore: Prefixes of weights to leave as initialised.

    Returns:
        What the file holds besides, such as `meta`.

    Raises:
        CheckpointError: As `load_pretrained`, and if the file is of another kind of model.
    """
    content = read_checkpoint(find_checkpoint(checkpoint))
    weights = interpret(content, checkpoint, generation=generation)
    check_kind(weights, model.state_dict(), has_dat=find_identity(model) is not None)
    check_weights(weights, model, ' (`load_generation` of a config)')
    fitted, report = fit(weights, model.state_dict(), ignore=ignore)
    report.check()
    model.load_state_dict(fitted)
    print_log(str(report), logger='current')
    return {key: value for key, value in content.items() if key not in ('state_dict', 'model')}


def check_weights(weights: Weights, model: nn.Module, where: str = '') -> None:
    """Compares generation and arch of a file with those of the `DAT` in a model, if there is one.

    Args:
        weights: Of the file.
        model: A `DAT`, or a model with one.
        where: How to state the generation at this door, for the message.

    Raises:
        CheckpointError: If they differ, or if the file does not tell its generation.
    """
    expected = find_identity(model)
    if expected is not None and weights.identity:
        check_identity(weights.identity, expected, weights.source, where)


def find_identity(model: nn.Module) -> Mapping[str, Any] | None:
    """The identity of the `DAT` in a model, or `None`."""
    found = (getattr(module, 'identity', None) for module in model.modules())
    return next((identity for identity in found if isinstance(identity, Mapping)), None)
