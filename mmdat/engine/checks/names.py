"""Misspelt names in configs and on the command line, which MMEngine takes for new ones."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.runner import FlexibleRunner, Runner

from ...spelling import find_slip
from ..errors import PreflightError

# What MMEngine and the tools read at the top level of a config, besides the arguments of the runners.
_READ = (
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'load_generation',
    'load_ignore',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)
_ARGUMENTS = {*inspect.signature(Runner).parameters, *inspect.signature(FlexibleRunner).parameters} - {'cfg'}
TOP_LEVEL = sorted({*_READ, *_ARGUMENTS})


def check_top_level(names: Iterable[str], settings: Iterable[str] = ()) -> None:
    """Refuses names at the top level of a config that look like misspellings of those which are read.

    Others are the user's variables, and so are all that start with an underscore.

    Args:
        names: Of the config.
        settings: Names that are read besides.

    Raises:
        PreflightError: With the name and what was probably meant.
    """
    known = [*TOP_LEVEL, *settings]
    for name in names:
        if name in known or name.startswith('_'):
            continue
        if meant := find_slip(name, known):
            raise PreflightError(
                f'nothing reads {name!r} at the top level of the config, did you mean {meant!r}? '
                '(to a variable of your own give another name, or one that starts with an underscore)'
            )


def check_options(cfg: Mapping, options: Mapping[str, Any]) -> None:
    """Refuses dotted names of `--cfg-options` that lead nowhere, or past one that they resemble.

    New names are otherwise allowed, because defaults need not stand in a config.

    Raises:
        PreflightError: With the part that is wrong.
    """
    for option in options:
        node, path = cfg, []
        *parents, last = option.split('.')
        for name in parents:
            node = _enter(node, name, path)
            path.append(name)
            if node is None:
                break
        else:
            # a class knows its settings and is asked when it is built
            if not (isinstance(node, Mapping) and 'type' in node):
                _enter(node, last, path)


def _enter(node: Any, name: str, path: list[str]) -> Any:
    """What `name` is in a dict or a list, `None` if it is new."""
    where = '.'.join(path) or 'the config'
    if isinstance(node, list | tuple):
        if not name.isdigit() or int(name) >= len(node):
            raise PreflightError(
                f'--cfg-options: {where} is a list of {len(node)}, numbered from 0, it has no {name!r}'
            )
        return node[int(name)]
    if not isinstance(node, Mapping):
        raise PreflightError(f'--cfg-options: {where} is {node!r}, it has no {name!r}')
    if name in node or not path:  # the top level is checked once the options are in it
        return node.get(name)
    if meant := find_slip(name, node):
        raise PreflightError(f'--cfg-options: {where} has no {name!r}, did you mean {meant!r}?')
    return None
