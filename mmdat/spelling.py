import difflib
from collections.abc import Iterable


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: `", did you mean 'x'?"`, or nothing where no allowed name is close."""
    close = difflib.get_close_matches(str(name), [str(other) for other in allowed], n=1)
    return f', did you mean {close[0]!r}?' if close else ''


def find_slip(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name of which `name` is a misspelling, if there is one.

    That is one mistake, or two in names of ten letters and more. More would take names for slips that
    are not, such as `test_pipeline` beside `tta_pipeline`.
    """
    mistakes, closest = min(((count_mistakes(name, other), other) for other in allowed), default=(9, ''))
    return closest if 0 < mistakes <= (2 if len(name) >= 10 else 1) else None


def count_mistakes(a: str, b: str) -> int:
    """Letters left out, added, changed, or swapped with the next one, from `a` to `b`."""
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 2 : i] == b[j - 1] + b[j - 2]:
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Such as `'1 image'` and `'1,200 images'`; a plural that does not just end in s is given."""
    return f'{number:,} {noun if number == 1 else plural or f"{noun}s"}'
