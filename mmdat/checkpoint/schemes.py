"""MMEngine's own loader of checkpoints: `mmdat://` and `hf://` for everyone, safe reading for our tools."""

import re
from collections import OrderedDict
from typing import Any

from mmengine.logging import print_log

from ..released import RELEASED
from .contents import interpret
from .errors import CheckpointError, join_names
from .files import is_trusted, read_checkpoint
from .identity import record_identity
from .locations import HUGGING_FACE, SCHEME, find_checkpoint


def load_from_mmdat(filename: str, map_location: Any = None) -> dict:
    """Reads a checkpoint for MMEngine, safely and under today's names.

    Returns:
        `{'meta': ..., 'state_dict': ...}`, and of a file of MMEngine whatever else is in it.

    Raises:
        CheckpointError: If it cannot be found, read or understood.
    """
    content = read_checkpoint(find_checkpoint(filename), map_location)
    weights = interpret(content, filename)
    # Files of mmdet 2.x and mmseg 0.x hold their configuration, which MMEngine would run when resuming.
    meta = {key: value for key, value in dict(content.get('meta') or {}).items() if key != 'config'}
    if weights.renamed:
        print_log(
            f'{filename}: {len(weights.renamed)} weights of the authors renamed; dropped, buffers that are '
            f'computed here: {join_names(weights.derived, 2) or "none"}',
            logger='current',
        )
        state_dict = OrderedDict(weights.state_dict)
        record_identity(state_dict, weights.identity)
        return {'meta': meta, 'state_dict': state_dict}
    if 'state_dict' not in content:
        return {'meta': meta, 'state_dict': content.get('model', content)}
    return {**content, 'meta': meta}


def register_scheme() -> None:
    """Makes `mmdat://` and `hf://` known to MMEngine, for `init_cfg`, `load_from` and its `load_checkpoint`.

    The authors' addresses of these files, which the metafiles hold, mean the same.
    """
    try:
        from mmengine.runner import CheckpointLoader
    except ImportError:  # without OpenCV there is no runner, and nothing that loads by MMEngine
        return
    addresses = [re.escape(release.url) for release in RELEASED.values()]
    CheckpointLoader.register_scheme([SCHEME, HUGGING_FACE, *addresses], load_from_mmdat, force=True)


def guard_schemes() -> None:
    """Has everything that MMEngine loads read by `load_from_mmdat`, or refused.

    MMEngine alone unpickles in full what PyTorch refuses, and what it downloads. This changes the whole
    process, so only the tools of mmdat do it.
    """
    from mmengine.runner import CheckpointLoader, checkpoint

    CheckpointLoader.register_scheme(['', 'http://', 'https://'], load_from_mmdat, force=True)
    # torchvision://, open-mmlab:// and mmcls:// look names up, and then call these
    checkpoint.load_from_http = checkpoint._safe_torch_load = load_from_mmdat
    if not is_trusted():
        remote = ['pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://']
        CheckpointLoader.register_scheme(remote, _refuse, force=True)


def _refuse(filename: str, map_location: Any = None) -> None:
    raise CheckpointError(
        f'{filename} is refused, because MMEngine would run what it holds: download it, and give its path; '
        'if you know and trust where it is from, --trust-checkpoint reads it'
    )
