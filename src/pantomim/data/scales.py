"""How stored numbers become the floats that a model sees: one division, recorded with the encoder."""

from pantomim.core.frozen import frozen
from pantomim.core.ranges import Positive


@frozen
class Scale:
    """`value / divisor`; nothing is clipped, except that resized 8-bit images stay in [0, 1].

    Args:
        divisor: The stored value that becomes 1.
        rule: Where the divisor comes from, in words.
    """

    divisor: Positive
    rule: str = "given"


_SCALES = {
    "uint8": Scale(255.0, rule="uint8: 255 becomes 1"),
    "uint16": Scale(65535.0, rule="uint16: 65535 becomes 1"),
    "int16": Scale(10000.0, rule="int16: reflectance x 10000"),
}


def scale_of(dtype: str) -> Scale:
    """The scale of a number type: the range of unsigned ones, reflectance x 10000 for int16, none for the others."""
    return _SCALES.get(dtype, Scale(1.0, rule=f"{dtype}: as it is"))
