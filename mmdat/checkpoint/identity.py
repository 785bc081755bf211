"""Which network weights are of, as far as their names and shapes do not tell.

The classifiers of CVPR'22 and of DAT++ share key names and shapes, and differ in their formulas: weights of
one run in the other, and are wrong without a word. So a `DAT` writes its `identity` into the metadata that
PyTorch keeps beside each state dict, where it costs no key and survives MMEngine's checkpoints, and loading
compares. Files of the authors hold no such record; for them only what one of the two generations alone has
counts as evidence.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..architectures import ARCHITECTURES, GENERATIONS
from ..released import find_release
from .errors import CheckpointError
from .locations import file_stem

# Names in the authors' files that only those of DAT++ have, and what they belong to. Our names prove nothing,
# because our modules combine freely.
_PP_NAMES = {
    r'\.local_perception_units\.': 'local perception units',
    r'\.attns\.\d+\.rpb$': 'neighbourhood attention',
    r'\.mlps\.\d+\.linear1\.0\.': 'convolutional MLPs',
    r'(^|\.)patch_proj\.3\.': 'a convolutional stem',
    r'(^|\.)norms\.\d\.norm\.': 'output norms of a detector or segmentor',
}
# Settings that only the DAT++ code has, in the configuration that a classifier file may hold.
_PP_SETTINGS = {'use_lpus', 'ksizes', 'nat_ksizes', 'log_cpb', 'layer_scale_values'}

# What gives the attention of a block away. Shifted windows have the names of others.
_BLOCKS = {
    'attn.relative_position_bias_table': 'L',
    'attn.relative_bias': 'N',
    'attn.offset.conv.weight': 'D',
    'attn.kv.weight': 'P',
    'attn.weight.weight': 'Q',
}


def record_identity(state_dict: Mapping[str, Tensor], identity: Mapping, prefix: str = 'backbone') -> None:
    """Writes what is known of a backbone into a state dict, as `DAT` does itself."""
    if identity.get('generation') is not None:
        metadata = state_dict.__dict__.setdefault('_metadata', {})
        metadata.setdefault(prefix, {'version': 1}).update(identity)


def recorded_identity(content: Mapping, state_dict: Mapping[str, Tensor], source: str) -> dict | None:
    """The record in a file of ours, or `None`.

    Raises:
        CheckpointError: If it makes no sense.
    """
    metadata = getattr(state_dict, '_metadata', {}).values()
    record = next((of_module for of_module in metadata if 'generation' in of_module), None)
    meta = content.get('meta')
    if record is None and isinstance(meta, Mapping):
        record = meta.get('mmdat')
    if record is None:
        return None
    try:
        record = json.loads(record) if isinstance(record, str) else record  # safetensors keeps text only
        record = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
        known = record['generation'] in GENERATIONS
    except (ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f'{source} holds a record of its network that cannot be read') from error
    if not known:
        raise CheckpointError(f'{source} is of a generation unknown here, {record["generation"]!r}')
    record.pop('version', None)  # of the module, which PyTorch keeps beside
    return record


def derive_generation(keys: Iterable[str], config: Any, source: str) -> str | None:
    """The generation of a file without a record, if something says so beyond doubt.

    Args:
        keys: Names as in the file.
        config: The authors' configuration in the file, if any.
        source: Where the file is from; its name counts if it is that of a released file.

    Raises:
        CheckpointError: If two things disagree.
    """
    reasons: dict[str, str] = {}
    if release := find_release(file_stem(source)):
        reasons[release.generation] = f'it has the name of the released {release.name}'
    settings = config.get('MODEL', {}).get('DAT', {}) if isinstance(config, Mapping) else {}
    if only := sorted(_PP_SETTINGS & set(settings)):
        reasons.setdefault('pp', f'its configuration has {only[0]}')
    for key in keys:
        if what := next((what for name, what in _PP_NAMES.items() if re.search(name, key)), None):
            reasons.setdefault('pp', f'it holds {what} ({key})')
            break
    if len(reasons) > 1:
        both = ', but '.join(f'{reason}: {GENERATIONS[name].title}' for name, reason in reasons.items())
        raise CheckpointError(f'{source} contradicts itself: {both}')
    return next(iter(reasons), None)


def derive_architecture(backbone: Mapping[str, Tensor], derived: Iterable[str]) -> dict:
    """Channels, depths and kinds of blocks.

    Args:
        backbone: Weights by our names.
        derived: The buffers of the authors' file. Only they tell shifted windows from others, by a mask.

    Returns:
        `embed_dims`, `depths` and, if they are all known, `blocks`, as in `DAT.identity`.
    """
    if 'stages.0.blocks.0.norm1.weight' not in backbone:
        return {}
    masks = (re.search(r'stages\.(\d)\.attns\.(\d+)\.attn_mask', key) for key in derived)
    masked = {(int(match[1]), int(match[2])) for match in masks if match}
    stages = [
        ''.join('S' if (i, j) in masked else letter for j, letter in enumerate(letters))
        for i, letters in enumerate(_letters(backbone))
    ]
    architecture = dict(
        embed_dims=len(backbone['stages.0.blocks.0.norm1.weight']), depths=tuple(map(len, stages))
    )
    if '?' not in ''.join(stages) and (masked or 'L' not in ''.join(stages)):
        architecture['blocks'] = tuple(stages)
    return architecture


def _letters(backbone: Mapping[str, Tensor]) -> list[str]:
    """The attention of each block of each stage, `?` where unknown."""
    stages: dict[int, dict[int, str]] = {}
    for key in backbone:
        if match := re.match(r'stages\.(\d)\.blocks\.(\d+)\.(.+)', key):
            blocks = stages.setdefault(int(match[1]), {})
            block = int(match[2])
            blocks[block] = _BLOCKS.get(match[3]) or blocks.get(block, '?')
    return [''.join(stages[i][j] for j in sorted(stages[i])) for i in sorted(stages)]


def require_generation(identity: Mapping, source: str, how: str = '') -> None:
    """Raises a `CheckpointError` if the generation of a file is unknown."""
    if identity.get('generation') is None:
        raise CheckpointError(
            f"{source} does not tell whether its weights are of CVPR'22 or of DAT++, whose files share names "
            f'and shapes and differ in formulas: say generation=cvpr or generation=pp{how}'
        )


def check_identity(found: Mapping, expected: Mapping, source: str, how: str = '') -> None:
    """Compares what is known of a file with the model.

    Args:
        found: Identity of the file; what is unknown is left out or `None`.
        expected: That of the model.
        source: The file, for messages.
        how: How to state the generation at this door, for the message.

    Raises:
        CheckpointError: If they differ, naming the right arch; or if the file's generation is unknown.
    """
    require_generation(found, source, how)
    for key, ours in expected.items():
        theirs = found.get(key)
        if theirs is None:
            continue
        # entries of stages: of those that both have
        both = isinstance(ours, tuple) and isinstance(theirs, tuple) and min(len(ours), len(theirs))
        if (theirs[:both] != ours[:both]) if both else (theirs != ours):
            raise CheckpointError(
                f'{source} holds weights of {describe(found)}, but the model is {describe(expected)}: '
                f'they differ in {key}, {theirs} and {ours}'
            )


def describe(identity: Mapping) -> str:
    """In prose: arch and generation."""
    generation, arch = GENERATIONS[identity['generation']].title, name_arch(identity)
    return f"arch='{arch}' ({generation})" if arch else f'an arch of its own ({generation})'


def name_arch(identity: Mapping) -> str | None:
    """The named arch with these sizes, if any."""
    for name, row in ARCHITECTURES.items():
        if all(getattr(row, key) == identity.get(key) for key in ('generation', 'embed_dims', 'depths')):
            return name
    return None
