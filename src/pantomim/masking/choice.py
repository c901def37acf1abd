"""All ways of hiding patches: what a config may name, and short names for the command line."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from pantomim.core.frozen import KIND
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.base import Masker
from pantomim.masking.block import BlockMasker
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.grid import GridMasker
from pantomim.masking.inverse_block import InverseBlockMasker
from pantomim.masking.noise import PRESETS, Color, Noise
from pantomim.masking.random import RandomMasker

MaskerConfig = Annotated[
    RandomMasker | BlockMasker | GridMasker | InverseBlockMasker | ColorNoiseMasker | AttentionMasker, KIND
]


def color_masker(color: Color, ratio: float = 0.75) -> ColorNoiseMasker:
    """The preset of a colour."""
    return ColorNoiseMasker(noise=Noise(color), ratio=ratio)


# A masker at a given share of hidden patches, by the name that `pantomim masks` and the studies know it by.
STRATEGIES: dict[str, Callable[[float], Masker]] = {
    "random": lambda ratio: RandomMasker(ratio=ratio),
    **{color: partial(color_masker, color) for color in PRESETS},
    "block": lambda ratio: BlockMasker(ratio=ratio),
    "block_beit": lambda ratio: BlockMasker(ratio=ratio, exact=False),
    "grid": lambda ratio: GridMasker(ratio=ratio),
    "inverse_block": lambda ratio: InverseBlockMasker(ratio=ratio),
}
