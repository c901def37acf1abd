"""How stored numbers become the floats that a network sees: one division, recorded with every network trained so."""

from pantomim.core.frozen import frozen
from pantomim.core.ranges import Positive


@frozen
class Scale:
    """`value / divisor`; nothing is clipped, except that resized 8-bit images stay in [0, 1]."""

    divisor: Positive  # the stored value that becomes 1
    rule: str = "given"  # where that comes from, in words

    @property
    def given(self) -> bool:
        """Whether the user said it; else it follows from the number type."""
        return self.rule.startswith("given")


BYTES = Scale(255.0, rule="uint8: 255 becomes 1")  # of all other projects, whether they divide before or with `std`
_SCALES = {
    "uint8": BYTES,
    "uint16": Scale(65535.0, rule="uint16: 65535 becomes 1"),
    "int16": Scale(10000.0, rule="int16: reflectance x 10000"),
}


def scale_of(dtype: str, given: float | None = None) -> Scale:
    """The given one, else that of a number type: the range of unsigned ones, reflectance x 10000 for int16."""
    if given is not None:
        return Scale(given, rule=f"given: {given:g} becomes 1")
    return _SCALES.get(dtype, Scale(1.0, rule=f"{dtype}: as it is"))
