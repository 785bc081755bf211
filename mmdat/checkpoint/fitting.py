"""Fitting the weights of a file to a model: tables of other sizes, and what is left over, told by name."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .contents import Weights
from .errors import CheckpointError, join_names, join_patterns


@dataclass
class LoadReport:
    """What became of each weight of a file, and of a model.

    Args:
        source: The file.
        loaded: Weights that are loaded, resized ones among them.
        resized: A line for each table that was resized.
        dropped: Weights of the file that are left out, by reason.
        kept: Weights of the model that stay as initialised, by reason.
        missing: Weights of the model that the file lacks.
        unexpected: Weights of the file that the model lacks.
        misshapen: A line for each weight of another shape.
    """

    source: str
    loaded: int = 0
    resized: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{self.source}: {self.loaded} weights loaded']
        if self.resized:
            lines.append(f'resized (bicubic): {join_names(self.resized)}')
        lines += [f'dropped, {why}: {join_patterns(keys)}' for why, keys in self.dropped.items() if keys]
        lines += [
            f'left as initialised, {why}: {join_patterns(keys)}' for why, keys in self.kept.items() if keys
        ]
        lines.append(self.problem() or 'missing: none; unexpected: none')
        return '\n  '.join(lines)

    def check(self, hint: str = '') -> None:
        """Raises a `CheckpointError` if something cannot be explained."""
        if problem := self.problem():
            raise CheckpointError(f'{self.source} does not fit the model: {problem}{hint}')

    def problem(self) -> str | None:
        """What cannot be explained, in one line; `None` if all is well."""
        parts = [
            f'{len(keys)} {what}: {join_names(keys)}'
            for what, keys in (
                ('missing', self.missing),
                ('unexpected', self.unexpected),
                ('of another shape', self.misshapen),
            )
            if keys
        ]
        return '; '.join(parts) or None


@dataclass(frozen=True)
class ClassWeights:
    """The weights of a model that grow with its number of classes.

    Args:
        number: Classes of the model.
        rows: By name, how many rows each class adds to a weight.
    """

    number: int
    rows: Mapping[str, int]

    def of_other_number(
        self, state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
    ) -> tuple[int, list[str]]:
        """The number of classes of a file, and its weights that differ by it alone from the model's."""
        more = {}
        for key in self.rows.keys() & state_dict.keys() & target.keys():
            given, wanted = state_dict[key].shape, target[key].shape
            if given != wanted and given[1:] == wanted[1:] and (given[0] - wanted[0]) % self.rows[key] == 0:
                more[key] = (given[0] - wanted[0]) // self.rows[key]
        if len(set(more.values())) != 1:
            return self.number, []
        return self.number + next(iter(more.values())), [key for key in target if key in more]


def fit(
    weights: Weights,
    target: Mapping[str, Tensor],
    backbone_only: bool = False,
    ignore: tuple[str, ...] = (),
    classes: ClassWeights | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Chooses and resizes weights for a model.

    Args:
        weights: Of a file.
        target: State dict of the model, by names as in `weights`.
        backbone_only: Load the backbone of another model, or a part of it. Then these differences are in
            order: heads and necks, stages and output norms that only one of the two has, and a classifier's
            final norm, which is not the output norm of a feature map (the authors, too, train those anew).
        ignore: Prefixes of weights to leave as initialised.
        classes: If given, weights that fit but for the number of classes are left as initialised.

    Returns:
        The values to load, those that stay as initialised included, and the report, whose `check` tells
        whether they fit.
    """
    report = LoadReport(weights.source)
    report.dropped['buffers that are computed here'] = weights.derived
    state_dict, report.resized = resize_bias_tables(weights.state_dict, target)
    kept = report.kept['as asked for'] = [key for key in target if key.startswith(ignore)]
    report.dropped['as asked for'] = _drop(state_dict, lambda key: key.startswith(ignore))
    if classes is not None:
        number, others = classes.of_other_number(state_dict, target)
        why = f'of {number} classes instead of {classes.number}'
        report.dropped[why] = _drop(state_dict, lambda key: key in others)
        report.kept[why] = others
        kept = [*kept, *others]
    if backbone_only:
        report.dropped |= _drop_what_is_not_built(state_dict, target)
        initial = {
            'not of the backbone': [k for k in target if not k.startswith('backbone.')],
            'output norms that the file lacks': [k for k in target if _is_norm(k) and k not in state_dict],
        }
        report.kept |= initial
        kept = [*kept, *(key for keys in initial.values() for key in keys)]

    fitted = {key: target[key] for key in kept} | state_dict
    report.missing = [key for key in target if key not in fitted]
    report.unexpected = [key for key in state_dict if key not in target]
    report.misshapen = [
        f'{key} {tuple(value.shape)} instead of {tuple(target[key].shape)}'
        for key, value in state_dict.items()
        if key in target and value.shape != target[key].shape
    ]
    report.loaded = len(state_dict) - len(report.unexpected) - len(report.misshapen)
    return fitted, report


def resize_bias_tables(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Interpolates position bias tables to another window or image size, as the authors do (bicubic).

    Args:
        state_dict: Weights to load.
        target: State dict of the model, whose tables give the sizes.

    Returns:
        The weights, with tables of the target's sizes, and a line for each table that was resized.
    """
    resized, report = dict(state_dict), []
    for key, table in state_dict.items():
        if not key.endswith('position_bias_table') or key not in target:
            continue
        shape = target[key].shape
        if table.shape == shape or table.ndim != len(shape):
            continue
        if table.ndim == 2:  # windows: (side ** 2, M)
            old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
            if old**2 != table.shape[0] or table.shape[1] != shape[1]:
                continue
            resized[key] = _resize(table.T.reshape(-1, old, old), (new, new)).flatten(1).T.contiguous()
        elif table.shape[0] == shape[0]:  # deformable attention: (M, rows, columns)
            resized[key] = _resize(table, shape[1:])
        else:
            continue
        report.append(f'{key}: {tuple(table.shape)} -> {tuple(shape)}')
    return resized, report


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    dtype = torch.promote_types(maps.dtype, torch.float32)  # half precision has no bicubic on CPUs
    resized = F.interpolate(maps[None].to(dtype), tuple(size), mode='bicubic', align_corners=False)
    return resized[0].to(maps.dtype)


def _drop_what_is_not_built(state_dict: dict, target: Mapping) -> dict[str, list[str]]:
    stages = {_stage(key) for key in target}
    norms = {key.split('.')[1] for key in target if _is_norm(key)}
    held = {key.split('.')[1] for key in state_dict if _is_norm(key)}
    final = held == {'norm3'} and norms > held
    return {
        'not of the backbone': _drop(state_dict, lambda key: not key.startswith('backbone.')),
        'stages that are not built': _drop(state_dict, lambda key: _stage(key) not in stages),
        'the final norm of a classifier': _drop(state_dict, lambda key: final and _is_norm(key)),
        'output norms that are not built': _drop(
            state_dict, lambda key: _is_norm(key) and key.split('.')[1] not in norms
        ),
    }


def _drop(state_dict: dict, condition: Callable[[str], bool]) -> list[str]:
    dropped = [key for key in state_dict if condition(key)]
    for key in dropped:
        del state_dict[key]
    return dropped


def _stage(key: str) -> str | None:
    match = re.match(r'backbone\.(stages\.\d)\.', key)
    return match and match[1]


def _is_norm(key: str) -> bool:
    return re.match(r'backbone\.norm\d\.', key) is not None
