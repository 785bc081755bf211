"""What a setting may be, as a test with the words for its error message."""

from collections.abc import Callable, Sequence
from math import isfinite
from numbers import Integral, Real
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """`text` ends the sentence "the setting must be ..."."""

    allows: Callable[[Any], bool]
    text: str


def integer(low: int, high: int | None = None, odd: bool = False, why: str = '') -> Rule:
    """An integer from `low` to `high`, both included; `why` is the reason of a bound that is not obvious."""

    def allows(value: Any) -> bool:
        is_integer = isinstance(value, Integral) and not isinstance(value, bool)
        return is_integer and low <= value and (high is None or value <= high) and (value % 2 == 1 or not odd)

    kind = 'an odd integer' if odd else 'an integer'
    bounds = f'from {low} to {high}' if high is not None else f'of at least {low}'
    return Rule(allows, f'{kind} {bounds}{why and f" ({why})"}')


def number(allows: Callable[[Real], bool], text: str) -> Rule:
    """A finite number that passes a test."""

    def is_allowed(value: Any) -> bool:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and isfinite(value) and allows(value)

    return Rule(is_allowed, f'a number {text}')


def one_of(*values: Any) -> Rule:
    """One of a few values, of the same type as well: 1 is not `True`."""

    def allows(value: Any) -> bool:
        return any(type(value) is type(allowed) and value == allowed for allowed in values)

    return Rule(allows, f'one of {", ".join(map(repr, values))}')


def optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.allows(value), f'None or {rule.text}')


def is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
