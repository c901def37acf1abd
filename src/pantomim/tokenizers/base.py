"""What everything that turns images into ids has in common."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Scaled images, in [0, 1], to one id a cell, of `vocabulary` ids from 0 on."""

    vocabulary: int

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids for images of a height and width; a ValueError, where they do not fit."""

    def __call__(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Int[Tensor, "B N"] | Int[Tensor, "B M"]:
        """The ids in raster order, or `only` those of some cells, without gradient.

        A ValueError, where channels or sides do not fit.
        """


@runtime_checkable
class Picturing(Tokenizer, Protocol):
    """A tokenizer that can show what ids stand for."""

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The image of a grid of ids, in [0, 1]; a ValueError, where there is no decoder."""
