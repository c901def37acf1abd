"""What everything that turns images into ids has in common, and the checks that go with it."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Tokenizer(Protocol):
    """Images to one id a cell.

    Args:
        vocabulary: Number of ids, from 0 on.
    """

    vocabulary: int

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids for images of a height and width.

        Raises:
            ValueError: if such images cannot be cut into cells.
        """
        ...

    def __call__(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The ids of scaled images (in [0, 1]) in raster order, without gradient."""
        ...


@runtime_checkable
class Picturing(Tokenizer, Protocol):
    """A tokenizer that can show what ids stand for."""

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The image of a grid of ids, in [0, 1]."""
        ...


def check_tokenizer(
    tokenizer: Tokenizer, image_size: tuple[int, int], grid: tuple[int, int], vocabulary: int | None = None
) -> None:
    """Refuse a tokenizer whose ids are not those of an encoder's patches, or more than its head predicts.

    Args:
        tokenizer: What gives the ids.
        image_size: Height and width of the images that it will see.
        grid: Rows and columns of the encoder's patches.
        vocabulary: What the head predicts; None: whatever the tokenizer has.

    Raises:
        ValueError: with what to change.
    """
    found = tokenizer.grid_of(image_size)
    if found != grid:
        raise ValueError(
            f"Tokenizer.grid_of must be the encoder's grid, {grid[0]} x {grid[1]} patches; got {found[0]} x {found[1]} "
            f"ids for images of {image_size[0]}x{image_size[1]}. Resize what the tokenizer sees (on_grid), or choose "
            f"another patch_size."
        )
    if vocabulary is not None and tokenizer.vocabulary != vocabulary:
        raise ValueError(
            f"Tokenizer.vocabulary must be what the head predicts, {vocabulary}; got {tokenizer.vocabulary}. "
            f"Use another tokenizer, or leave the vocabulary out: the head then has the tokenizer's."
        )
