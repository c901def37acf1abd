"""Ranges as types: a frozen config refuses a value outside, in Python and from YAML alike."""

import math

import pytest

from pantomim.config import from_dict
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, NotNegative, Positive, Share, ShareBelowOne


@frozen
class Sizes:
    width: AtLeastOne = 1
    rate: Positive = 0.5
    momentum: ShareBelowOne | None = None
    weights: tuple[Share, ...] = ()
    box: tuple[AtLeastOne, NotNegative] = (1, 0.0)
    name: str = ""

    def __post_init__(self) -> None:
        if self.name == "wide" and self.width < 8:
            raise ValueError("Sizes.width must be at least 8 for wide.")


BAD = [
    ({"width": 0}, r"Sizes\.width must be at least 1; got 0\."),
    ({"rate": 0.0}, r"Sizes\.rate must be above 0; got 0\.0\."),
    ({"rate": math.nan}, r"Sizes\.rate must be above 0; got nan\."),
    ({"rate": math.inf}, r"Sizes\.rate must be above 0; got inf\."),
    ({"momentum": 1.0}, r"Sizes\.momentum must be in \[0, 1\); got 1\.0\."),
    ({"weights": (0.5, 1.5)}, r"Sizes\.weights must be in \[0, 1\]; got \(0\.5, 1\.5\)\."),
    ({"box": (1, -1.0)}, r"Sizes\.box must be at least 0; got \(1, -1\.0\)\."),
    ({"name": "wide"}, r"Sizes\.width must be at least 8"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_a_value_outside_its_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sizes(**values)
    with pytest.raises(ValueError, match=message):
        from_dict(Sizes, values, "config.yaml")


def test_values_at_the_ends_are_allowed() -> None:
    values = {"width": 1, "momentum": 0.0, "weights": (0.0, 1.0), "box": (1, 0.0)}
    assert from_dict(Sizes, values, "config.yaml") == Sizes(**values)
