"""The half-cosine that rates, momenta, weight decays and mixing weights follow."""

import math


def half_cosine(start: float, end: float, share: float) -> float:
    """The value on the way from `start` (share 0) to `end` (share 1), along half a cosine: flat, steep, flat."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))
