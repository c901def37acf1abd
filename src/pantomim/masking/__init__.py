"""Which patches to mask: one way a file, each a frozen dataclass that is its own config."""

from typing import TYPE_CHECKING, Annotated, Union

from pantomim.core.frozen import KIND
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.base import Masker, Strategy
from pantomim.masking.block import BlockMasker
from pantomim.masking.color_noise import ColorNoiseMasker, of_bank
from pantomim.masking.grid import GridMasker
from pantomim.masking.inverse_block import InverseBlockMasker
from pantomim.masking.multi_block import MultiBlockMasker
from pantomim.masking.random import RandomMasker

MASKERS = (  # the only list
    RandomMasker,
    ColorNoiseMasker,
    BlockMasker,
    GridMasker,
    InverseBlockMasker,
    AttentionMasker,
    MultiBlockMasker,
)

if TYPE_CHECKING:
    MaskerConfig = Masker  # one of the above; a type checker reads no tuple
else:
    MaskerConfig = Annotated[Union[MASKERS], KIND]  # noqa: UP007  (made of a tuple)

# What `pantomim masks`, galleries and studies know by name, in the order in which they show it.
STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for masker in MASKERS for strategy in masker.strategies}


def strategy_of(name: str) -> Strategy:
    """The strategy of a name; any other name is a bank's, whose patterns decide."""
    return STRATEGIES.get(name) or of_bank(name)
