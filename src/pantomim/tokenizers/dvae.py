"""A discrete auto-encoder as a tokenizer: the published DALL-E networks, or networks trained here."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, at_least_float32, code_grid, map_pixels, unmap_pixels

Precision = Literal["float32", "float16"]


class DVAETokenizer(nn.Module):
    """The most likely code of each cell, without noise; frozen.

    Args:
        encoder: Images to scores.
        decoder: Codes to images; None: ids only.
        precision: Of the convolutions, whatever autocast says outside; the first or last 1 x 1 around the codes always
            has the weights' own type. "float16" is the published code's choice on a GPU. Ids differ between the two
            where two scores nearly tie.

    Raises:
        ValueError: if encoder and decoder do not have the same codes.

    Paper: Ramesh et al. 2021, arXiv:2102.12092, section 2.1; used as by Bao et al. 2021, arXiv:2106.08254, section 2.1.
    Deviation: float32 on every device unless told otherwise, so that ids are the same everywhere.
    """

    frozen = True

    def __init__(
        self, encoder: DVAEEncoder, decoder: DVAEDecoder | None = None, *, precision: Precision = "float32"
    ) -> None:
        super().__init__()
        if decoder is not None:
            ours, theirs = encoder.sizes, decoder.sizes
            for name in ("vocabulary", "stride", "in_chans"):
                if getattr(ours, name) != getattr(theirs, name):
                    raise ValueError(
                        f"DVAETokenizer.decoder must have the encoder's {name}, {getattr(ours, name)}; got "
                        f"{getattr(theirs, name)}. Take both from the same training."
                    )
        self.encoder, self.decoder, self.precision = encoder, decoder, precision
        sizes = encoder.sizes
        self.vocabulary, self.stride, self.in_chans = sizes.vocabulary, sizes.stride, sizes.in_chans
        self.requires_grad_(False)

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
            ValueError: if channels or sides do not fit.
        """
        return self.logits(images).argmax(dim=1).flatten(1)

    @torch.no_grad()
    def logits(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """The score of each code in each cell.

        Raises:
            ValueError: if channels or sides do not fit.
        """
        with self._computing(images.device):
            return self.encoder(map_pixels(images))

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The images of ids, in [0, 1].

        Raises:
            ValueError: if there is no decoder.
        """
        if self.decoder is None:
            raise ValueError(
                "DVAETokenizer.decoder must be there to make images of ids; got none. "
                "Give a folder with the encoder's and the decoder's file."
            )
        codes = F.one_hot(ids.unflatten(1, grid), self.vocabulary).movedim(-1, 1)
        with self._computing(ids.device):
            location = self.decoder(codes.to(next(self.decoder.parameters()).dtype))[:, : self.in_chans]
        return unmap_pixels(at_least_float32(location).sigmoid())

    def _computing(self, device: torch.device) -> AbstractContextManager:
        half = self.precision == "float16"
        return torch.autocast(device.type, dtype=torch.float16 if half else None, enabled=half)
