"""Ids of a small discrete auto-encoder that BEiT's or CAE's code, or DALLE-pytorch, has trained."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.nn.dvae import code_grid
from pantomim.nn.strided_dvae import StridedDVAE


class StridedDVAETokenizer(nn.Module):
    """The most likely code of each cell; frozen, in float32 whatever autocast says.

    Args:
        networks: As `formats.strided_dvae.load_strided_dvae` reads them.
    """

    frozen = True

    def __init__(self, networks: StridedDVAE) -> None:
        super().__init__()
        self.networks, sizes = networks, networks.sizes
        self.vocabulary, self.stride, self.in_chans = sizes.vocabulary, sizes.stride, sizes.in_chans
        self.requires_grad_(False)

    @property
    def decoder(self) -> nn.Module:
        """What makes pictures of codes."""
        return self.networks.decoder

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids.

        Raises:
            ValueError: if an image side is not a multiple of the stride.
        """
        return code_grid(image_size, self.stride)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """Ids of images in [0, 1], in raster order.

        Raises:
            ValueError: if sides do not fit.
        """
        self.grid_of((images.shape[2], images.shape[3]))
        with torch.autocast(images.device.type, enabled=False):
            return self.networks(images).argmax(dim=1).flatten(1)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """What ids look like, in [0, 1]."""
        with torch.autocast(ids.device.type, enabled=False):
            return self.networks.decode(ids.unflatten(1, grid))
