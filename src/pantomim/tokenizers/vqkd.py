"""Ids of a tokenizer that was learned from a teacher (VQ-KD): the code nearest to its encoder's output for a patch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.precision import tf32
from pantomim.nn.vqkd import VQKDNetworks


class VQKDTokenizer(nn.Module):
    """The nearest code of each patch; frozen, and made for images of one size.

    Paper: Peng et al. 2022, arXiv:2208.06366, section 2.2.
    """

    frozen = True

    def __init__(self, networks: VQKDNetworks, *, float16: bool = False) -> None:
        super().__init__()
        self.networks, self.float16 = networks, float16
        self.vocabulary, self.in_chans = networks.sizes.vocabulary, networks.encoder.in_chans
        self.image_size, self.grid = networks.encoder.image_size, networks.encoder.grid
        self.requires_grad_(False)

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids, of images of the size that it was trained at."""
        if image_size != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"image_size must be what the tokenizer was trained at, {height}x{width}; got {image_size[0]}x"
                f"{image_size[1]}. Resize the images, or train a tokenizer for this size."
            )
        return self.grid

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Int[Tensor, "B N"] | Int[Tensor, "B M"]:
        """Ids of images in [0, 1], in raster order, or `only` of some cells; in `float16`, whatever autocast says."""
        with tf32(), torch.autocast(images.device.type, torch.float16, enabled=self.float16 and images.is_cuda):
            return self.networks(images, only)

    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Always a ValueError: codes stand for a teacher's features."""
        raise ValueError(
            "VQKDTokenizer.decode must not be asked for: its codes stand for a teacher's features, and nothing was "
            "trained to paint them. Use a discrete auto-encoder (`pantomim tokenizer train dvae`) for pictures."
        )
