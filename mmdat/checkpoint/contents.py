"""What a checkpoint file holds, whoever wrote it: weights under our names, and of which network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..architectures import GENERATIONS
from .errors import CheckpointError, join_names
from .identity import derive_architecture, derive_generation, recorded_identity
from .official_names import DERIVED_BUFFERS, from_official

_BARE_BACKBONE = ('patch_proj.', 'patch_embed.')


@dataclass
class Weights:
    """The weights in a file.

    Args:
        source: Where they are from, for messages.
        state_dict: By our names for a whole model: `backbone.*`, `head.*` and so on.
        identity: Of the backbone, see `DAT.identity`; empty if there is no DAT in the file.
        renamed: The authors' names, and ours.
        derived: The authors' buffers that our modules compute instead of storing them.
    """

    source: str
    state_dict: dict[str, Tensor]
    identity: dict = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)

    @property
    def is_classifier(self) -> bool:
        """Whether there is nothing but a backbone, with or without the head of a classifier."""
        return {key.partition('.')[0] for key in self.state_dict} <= {'backbone', 'head'}

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's weights by its own names."""
        prefix = 'backbone.'
        return {k.removeprefix(prefix): v for k, v in self.state_dict.items() if k.startswith(prefix)}

    def state_generation(self, generation: str | None) -> None:
        """Takes the user's word for it, unless the file says otherwise.

        Raises:
            CheckpointError: If the file is of another generation, or there is none of that name.
        """
        if generation is None:
            return
        if generation not in GENERATIONS:
            raise CheckpointError(f'generation is one of {", ".join(GENERATIONS)}, got {generation!r}')
        known = self.identity.get('generation')
        if known not in (None, generation):
            raise CheckpointError(f'{self.source} is of generation {known!r}, not {generation!r}')
        self.identity['generation'] = generation


def interpret(
    content: Mapping, source: str, prefix: str | None = None, generation: str | None = None
) -> Weights:
    """Finds the weights in what `read_checkpoint` returns.

    Takes the classifiers of the authors (`{'model': ...}` or bare), their detectors and segmentors of mmdet
    2.x and mmseg 0.x, whose necks and heads have today's names, and files of MMEngine.

    Args:
        content: What the file holds.
        source: Where it is from.
        prefix: Where the backbone is in the file's model. By default `backbone.`, or the root.
        generation: For files that do not tell, see `identity`.

    Raises:
        CheckpointError: If there are no weights, or names of a DAT that are not known.
    """
    state_dict = _find_state_dict(content, source)
    identity = recorded_identity(content, state_dict, source)
    state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    if prefix is not None:
        prefix = prefix if prefix.endswith('.') else f'{prefix}.'
        state_dict = {
            f'backbone.{key.removeprefix(prefix)}': value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        if not state_dict:
            raise CheckpointError(f'{source} holds no weights below {prefix}')
    elif any(key.startswith(_BARE_BACKBONE) for key in state_dict):
        state_dict = {
            key if key.startswith('cls_') else f'backbone.{key}': value for key, value in state_dict.items()
        }

    weights = Weights(source, state_dict)
    if 'backbone.patch_proj.0.weight' in state_dict:
        _rename(weights)
    if 'backbone.stages.0.blocks.0.mlp.fc1.weight' in weights.state_dict:
        weights.identity = identity or derive_architecture(weights.backbone, weights.derived) | {
            'generation': derive_generation(state_dict, content.get('config'), source)
        }
        weights.state_generation(generation)
    return weights


def _find_state_dict(content: Mapping, source: str) -> Mapping[str, Tensor]:
    state_dict = next((content[key] for key in ('state_dict', 'model') if key in content), content)
    items = state_dict.items() if isinstance(state_dict, Mapping) else []
    tensors = {key for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f'{source} holds no weights, only {join_names(map(str, content), 5) or "nothing"}'
        )
    if others := [str(key) for key in state_dict if key not in tensors]:
        raise CheckpointError(f'{source}: not weights, but found among them: {join_names(others, 5)}')
    return state_dict


def _rename(weights: Weights) -> None:
    ours, rest = {}, {}
    for key, value in weights.state_dict.items():
        of_dat = key.startswith(('backbone.', 'cls_'))
        (ours if of_dat else rest)[key.removeprefix('backbone.')] = value
    try:
        renamed = from_official(ours)
    except ValueError as error:
        raise CheckpointError(f'{weights.source}: {error}') from error
    weights.derived = [key for key in ours if key.endswith(DERIVED_BUFFERS)]
    weights.renamed = dict(zip([key for key in ours if key not in set(weights.derived)], renamed))
    weights.state_dict = renamed | rest
