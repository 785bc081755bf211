import difflib
from collections.abc import Iterable


def did_you_mean(name: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error message: `", did you mean 'x'?"`, or nothing where no allowed name is close.

    Args:
        name: What was written.
        allowed: What could have been meant.
        cutoff: Similarity from which a name counts as close, in [0, 1], see `difflib`.
    """
    close = difflib.get_close_matches(str(name), [str(other) for other in allowed], n=1, cutoff=cutoff)
    return f', did you mean {close[0]!r}?' if close else ''
