"""Ids without any training: the direction, out of many random ones, that a patch points to most."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.precision import tf32
from pantomim.nn.tokens import normalise_tokens, patch_grid, take


class RandomProjectionTokenizer(nn.Module):
    """The index of the largest of `vocabulary` projections of a patch's pixels; frozen, drawn from `seed` on the CPU.

    `standardised`: a patch's mean is subtracted first, and its std divided by. Without that, bright patches all point
    to the few directions whose weights have the largest sums: of 6,272 patches of two photographs, two thirds had the
    same id of 8,192.

    Paper: as in the CAE authors' PaddlePaddle release, `packages/datasets.py`: pixels in [0, 1], not standardised, in
        the order channel, row, column; 768 x 8192.
    Deviation: the distribution of their matrix is not stated; ours is standard normal. `standardised` is ours.
    """

    frozen = True
    directions: Tensor

    def __init__(
        self, patch_size: int = 16, in_chans: int = 3, vocabulary: int = 8192, seed: int = 0, standardised: bool = False
    ) -> None:
        super().__init__()
        self.patch_size, self.in_chans, self.vocabulary, self.seed = patch_size, in_chans, vocabulary, seed
        self.standardised = standardised
        generator = torch.Generator("cpu").manual_seed(seed)
        directions = torch.randn(in_chans * patch_size**2, vocabulary, generator=generator, device="cpu")
        self.register_buffer("directions", directions, persistent=False)

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids."""
        return patch_grid(image_size, self.patch_size)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Int[Tensor, "B N"] | Int[Tensor, "B M"]:
        """Ids of images in [0, 1], in raster order, or `only` of some; in the pixels' precision, despite autocast."""
        batch, channels, height, width = images.shape
        if channels != self.in_chans:
            raise ValueError(
                f"RandomProjectionTokenizer.in_chans must be the channels of the images; got {self.in_chans}, and "
                f"images with {channels}."
            )
        rows, cols = self.grid_of((height, width))
        cells = images.reshape(batch, channels, rows, self.patch_size, cols, self.patch_size)
        patches = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, -1)
        patches = patches if only is None else take(patches, only)
        if self.standardised:
            patches = normalise_tokens(patches, unbiased=True, eps=1e-6)
        with tf32(), torch.autocast(images.device.type, enabled=False):
            return (patches @ self.directions.to(patches.dtype)).argmax(dim=-1)
