"""The small discrete auto-encoder that BEiT's and CAE's code can be given instead of DALL-E's: strided convolutions.

Two layouts with the same parts: residual blocks behind all strided convolutions (DALLE-pytorch and CAE), or one behind
each (BEiT). Names of parameters are those of the files.

Source: lucidrains/DALLE-pytorch, `dalle_pytorch.py`; lxtGH/CAE and microsoft/unilm beit, `modeling_discrete_vae.py`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.core.frozen import frozen


@frozen
class StridedSizes:
    """The sizes of both networks.

    Args:
        interleaved: BEiT's order, a residual block behind each strided convolution; else CAE's, all of them behind.
        in_chans: Channels of the images.
        vocabulary: Number of codes.
        width: Channels inside.
        code_width: Numbers in a code.
        layers: Strided convolutions; each halves the side.
        blocks: Residual blocks, where they are not interleaved.
    """

    interleaved: bool
    in_chans: int = 3
    vocabulary: int = 8192
    width: int = 256
    code_width: int = 512
    layers: int = 3
    blocks: int = 2

    @property
    def stride(self) -> int:
        """Pixels per code, along each side."""
        return 2**self.layers


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.net(maps) + maps


class StridedDVAE(nn.Module):
    """Codebook, encoder and decoder; images are standardised with mean and deviation 0.5 on the way in and out."""

    def __init__(self, sizes: StridedSizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.codebook = nn.Embedding(sizes.vocabulary, sizes.code_width)
        down = [
            nn.Sequential(nn.Conv2d(width if number else sizes.in_chans, width, 4, stride=2, padding=1), nn.ReLU())
            for number in range(sizes.layers)
        ]
        first = sizes.code_width if sizes.interleaved else width
        up = [
            nn.Sequential(nn.ConvTranspose2d(width if number else first, width, 4, stride=2, padding=1), nn.ReLU())
            for number in range(sizes.layers)
        ]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        if sizes.interleaved:
            for convolution, transposed in zip(down, up, strict=True):
                encoder += [convolution, _Residual(width)]
                decoder += [transposed, _Residual(width)]
        else:
            encoder = [*down, *(_Residual(width) for _ in range(sizes.blocks))]
            decoder = [nn.Conv2d(sizes.code_width, width, 1), *(_Residual(width) for _ in range(sizes.blocks)), *up]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(width, sizes.vocabulary, 1))
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(width, sizes.in_chans, 1))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """The score of each code in each cell, of images in [0, 1]."""
        return self.encoder((images - 0.5) / 0.5)

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B C H W"]:
        """What codes look like, in [0, 1]."""
        maps = torch.movedim(self.codebook(ids), -1, 1)
        return (self.decoder(maps) * 0.5 + 0.5).clamp(0, 1)
