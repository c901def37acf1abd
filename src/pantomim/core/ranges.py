"""Ranges of numbers as types: annotate a field of a `frozen` config with one, and a value outside is refused."""

import math
from dataclasses import dataclass
from itertools import repeat
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """An interval, as metadata of a number: `least` and `most` lie in it, `above` and `below` do not, NaN in none."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    @property
    def rule(self) -> str:
        """What a value must be, to stand after "must"."""
        low, high = max(self.least, self.above), min(self.most, self.below)
        if high == math.inf:
            return f"be above {low:g}" if self.above == low else f"be at least {low:g}"
        return f"be in {'(' if self.above == low else '['}{low:g}, {high:g}{')' if self.below == high else ']'}"


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
PositiveShare = Annotated[float, Range(above=0, most=1)]
ShareBelowOne = Annotated[float, Range(least=0, below=1)]
AtLeastOne = Annotated[int, Range(least=1)]
Size = Annotated[int, Range(least=1, most=2**16)]  # of a part of a network; more is a mistake, or an attack on memory
Depth = Annotated[int, Range(least=1, most=2**10)]
AtLeastTwo = Annotated[int, Range(least=2)]
AtLeastZero = Annotated[int, Range(least=0)]


def broken_rule(hint: Any, value: Any) -> str | None:
    """The rule of an annotated type that a value breaks, of a tuple's items too; None: it breaks none."""
    origin, args = get_origin(hint), get_args(hint)
    if value is None or not args:  # whether None is allowed is a matter of the type without the range
        return None
    if origin is Annotated:
        broken = (item.rule for item in args[1:] if isinstance(item, Range) and value not in item)
        return next(broken, None) or broken_rule(args[0], value)
    if origin in (Union, UnionType):
        return next(filter(None, (broken_rule(member, value) for member in args)), None)
    if origin is tuple and isinstance(value, tuple):
        hints = repeat(args[0]) if args[-1] is ... else args
        return next(filter(None, map(broken_rule, hints, value)), None)
    return None
