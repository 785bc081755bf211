"""Clean checkpoint files: weights under today's names, and of which network they are."""

import json
import os
import os.path as osp
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from ..backbones import DAT
from ..version import __version__
from .architecture import derive_settings
from .errors import CheckpointError, join_names, join_patterns
from .fitting import fit
from .identity import describe, name_arch, record_identity, require_generation
from .loading import check_weights
from .reading import SAFETENSORS_SUFFIX, SUFFIXES, read_checkpoint, require_safetensors
from .sources import find_checkpoint
from .weights import interpret

# What MMEngine's libraries read of a file besides its weights.
_KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE')


def convert_checkpoint(
    source: str, destination: str, generation: str | None = None, model: nn.Module | None = None
) -> str:
    """Writes a clean file.

    What is written is read again, compared, and loaded strictly, before it gets its name.

    Args:
        source: As in `load_pretrained`.
        destination: File to write, in the safetensors format if its suffix is `.safetensors`.
        generation: `'cvpr' | 'plus'`, for files that do not tell.
        model: Whole model to fit the weights to, with its sizes of bias tables. By default the backbone that
            the weights describe; necks and heads are taken as they are.

    Returns:
        What was renamed, resized and dropped, in prose.

    Raises:
        CheckpointError: If the file cannot be read or does not fit. Then nothing is written.
    """
    if not destination.endswith(SUFFIXES):
        raise CheckpointError(f'{destination} must end in {", ".join(SUFFIXES)}')
    if destination.endswith(SAFETENSORS_SUFFIX):
        require_safetensors(destination)  # before any work
    content = read_checkpoint(find_checkpoint(source))
    weights = interpret(content, source, generation=generation)
    if not weights.identity:
        raise CheckpointError(f'{source} holds no DAT, but {join_names(weights.state_dict, 5)}')
    require_generation(weights.identity, source, ', by --generation')
    unchecked = {}
    if model is None:
        model = nn.ModuleDict({'backbone': DAT(**derive_settings(weights.backbone, weights.identity))})
        unchecked = {k: v for k, v in weights.state_dict.items() if not k.startswith('backbone.')}
    check_weights(weights, model)
    fitted, report = fit(weights, model.state_dict() | unchecked)
    report.check()

    meta = content.get('meta') or {}
    record = {**weights.identity, 'arch': name_arch(weights.identity), 'mmdat_version': __version__}
    kept = {key: meta[key] for key in _KEPT_META if key in meta} | {'mmdat': record}
    folder, name = osp.split(osp.abspath(destination))
    os.makedirs(folder, exist_ok=True)
    part = osp.join(folder, f'.part-{name}')
    try:
        _write(part, fitted, weights.identity, kept)
        _verify(part, fitted, model)
        os.replace(part, destination)
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)

    not_weights = [key for key in content if key not in ('state_dict', 'model', 'meta', *weights.state_dict)]
    not_weights += [f'meta.{key}' for key in meta if key not in kept]
    report.dropped['not weights'] = [str(key) for key in not_weights]
    pairs = Counter(re.sub(r'\d+', '*', f'renamed: {old} -> {new}') for old, new in weights.renamed.items())
    lines = [f'{pair} ({count})' for pair, count in pairs.items()]
    lines += [f'taken as they are, for want of a config: {join_patterns(unchecked)}'] if unchecked else []
    lines.append(f'{destination}: written, read again and loaded strictly; {describe(record)}')
    return '\n'.join([*lines, str(report)])


def _write(path: str, state_dict: Mapping[str, Tensor], identity: Mapping, meta: Mapping) -> None:
    weights = OrderedDict((key, value.detach().clone().contiguous()) for key, value in state_dict.items())
    if path.endswith(SAFETENSORS_SUFFIX):
        metadata = {'format': 'pt', 'mmdat': json.dumps(meta['mmdat'])}
        require_safetensors(path).save_file(weights, path, metadata)
    else:
        record_identity(weights, identity)
        torch.save({'meta': dict(meta), 'state_dict': weights}, path)


def _verify(path: str, expected: Mapping[str, Tensor], model: nn.Module) -> None:
    weights = interpret(read_checkpoint(path), path)
    check_weights(weights, model)
    found = weights.state_dict
    if found.keys() != expected.keys() or any(not torch.equal(found[key], expected[key]) for key in found):
        raise CheckpointError(f'{path} was written, but reads differently')
    model.load_state_dict({key: found[key] for key in model.state_dict()}, strict=True)
