"""What goes wrong with checkpoint files, worded for the person who named the file."""

import re
from collections import Counter
from collections.abc import Iterable

from ..errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be found, read or fitted."""


def join_names(names: Iterable[str], most: int = 20) -> str:
    """A list in prose, cut after `most` names."""
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def join_patterns(names: Iterable[str], most: int = 20) -> str:
    """A list in prose, of names that may differ in numbers."""
    patterns = Counter(re.sub(r'\d+', '*', name) for name in names)
    parts = [f'{pattern} ({count})' if count > 1 else pattern for pattern, count in patterns.items()]
    return join_names(parts, most)
