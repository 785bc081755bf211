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
from ..checkpoint import CheckpointError, check_weights, find_checkpoint, fit, interpret, read_checkpoint
from ..checkpoint.errors import join_names, join_patterns
from ..checkpoint.files import SAFETENSORS_SUFFIX, SUFFIXES, require_safetensors
from ..checkpoint.identity import describe, name_arch, record_identity, require_generation
from ..version import __version__

# What MMEngine's libraries read of a file besides its weights.
_KEPT_META = ('dataset_meta', 'CLASSES', 'PALETTE')


def convert_checkpoint(
    source: str, destination: str, model: nn.Module | str, generation: str | None = None
) -> str:
    """Writes a clean file.

    What is written is read again, compared, and loaded strictly, before it gets its name.

    Args:
        source: As in `load_pretrained`.
        destination: File to write, in the safetensors format if its suffix is `.safetensors`.
        model: Whole model to fit the weights to, with its sizes of bias tables; or the name of an arch, as
            in `DAT`, whose backbone the file must fit as it is, while neck and head are taken unseen.
        generation: `'cvpr' | 'pp'`, for files that do not tell.

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
    by_arch = isinstance(model, str)
    if by_arch:
        norms = tuple(i for i in range(4) if f'norm{i}.weight' in weights.backbone)
        model = nn.ModuleDict({'backbone': DAT(model, out_indices=norms or (0, 1, 2, 3))})
        unchecked = {k: v for k, v in weights.state_dict.items() if not k.startswith('backbone.')}
    check_weights(weights, model)
    fitted, report = fit(weights, model.state_dict() | unchecked)
    report.check(': a config with the right settings is given by --config' if by_arch else '')
    if by_arch and report.resized:
        raise CheckpointError(
            f'{source} is of another image or window size than its arch, whose bias tables differ '
            f'({report.resized[0]}): --config names a config with the right sizes'
        )

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
