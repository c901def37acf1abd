"""Let a tokenizer see images at another size, so that it has one id for each of an encoder's patches."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.tokenizers.base import Tokenizer
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.vqkd import VQKDTokenizer


class ResizedTokenizer(nn.Module):
    """A tokenizer behind a resize of the batch to `image_size`: the second view, of the same crop and flip.

    Paper: Bao et al. 2021, arXiv:2106.08254: a second view of 112 x 112 for an encoder at 224 x 224.
    Deviation: the authors cut the view from the stored image with Lanczos interpolation; this one is resized from the
        encoder's view (bicubic, antialiased, cut to [0, 1]): 94 to 98 % of the ids are the same, about as many as with
        another kernel for the second view (docs/results/second_view.md).
    """

    frozen = True

    def __init__(self, tokenizer: DVAETokenizer | VQKDTokenizer, image_size: tuple[int, int]) -> None:
        super().__init__()
        tokenizer.grid_of(image_size)  # refuses a size that does not fit
        self.tokenizer, self.image_size, self.vocabulary = tokenizer, image_size, tokenizer.vocabulary

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids, which are the same for images of every size."""
        return self.tokenizer.grid_of(self.image_size)

    def forward(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Int[Tensor, "B N"] | Int[Tensor, "B M"]:
        """Ids of images in [0, 1], in raster order, or `only` of some cells."""
        if images.shape[2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.tokenizer(images, only)

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The images of ids, at the size that the tokenizer sees."""
        return self.tokenizer.decode(ids, grid)


def on_grid(tokenizer: Any, image_size: tuple[int, int], grid: tuple[int, int]) -> Tokenizer:
    """The tokenizer, with one id for each patch of a grid: itself, or behind a resize.

    A stride of 8 and a grid of 14 x 14 make it see 112 x 112 pixels, whatever the size of the images; one that was
    learned from a teacher sees the size that it was trained at; a projection is never resized.

    A ValueError, if its grid is another one.
    """
    if isinstance(tokenizer, VQKDTokenizer):
        seen, advice = tokenizer.image_size, "Train one for this grid, or choose another patch_size"
    elif stride := getattr(tokenizer, "stride", None):
        seen, advice = (grid[0] * stride, grid[1] * stride), ""
    else:
        seen, advice = image_size, "Give it the encoder's patch_size"
    if (found := tokenizer.grid_of(seen)) != grid:
        raise ValueError(
            f"on_grid.tokenizer must have one id a patch, {grid[0]} x {grid[1]}; got {found[0]} x {found[1]}. {advice}."
        )
    return tokenizer if seen == image_size else ResizedTokenizer(tokenizer, seen)
