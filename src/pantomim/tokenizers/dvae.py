"""A discrete auto-encoder as a tokenizer: the published DALL-E networks, or networks trained here."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.precision import at_least_float32
from pantomim.nn.dvae import DVAEDecoder, DVAEEncoder, code_grid, map_pixels, unmap_pixels


class DVAETokenizer(nn.Module):
    """The most likely code of each cell, without noise; frozen, and with ids only where there is no decoder.

    Paper: Ramesh et al. 2021, arXiv:2102.12092, section 2.1; used as by Bao et al. 2021, arXiv:2106.08254, section 2.1.
    `float16` is the published code's way: convolutions in float16 on a GPU, but for the last one; ids whose scores
    nearly tie then change (0.1 %). Else ids are the same everywhere, in the weights' precision, under autocast too.
    """

    frozen = True

    def __init__(self, encoder: DVAEEncoder, decoder: DVAEDecoder | None = None, *, float16: bool = False) -> None:
        super().__init__()
        sizes = encoder.sizes
        of_decoder = sizes if decoder is None else decoder.sizes
        for name in ("vocabulary", "stride", "in_chans"):
            if (theirs := getattr(of_decoder, name)) != (ours := getattr(sizes, name)):
                raise ValueError(
                    f"DVAETokenizer.decoder must have the encoder's {name}, {ours}; got {theirs}. Take both from the "
                    f"same training."
                )
        self.encoder, self.decoder, self.float16 = encoder, decoder, float16
        self.vocabulary, self.stride, self.in_chans = sizes.vocabulary, sizes.stride, sizes.in_chans
        self.requires_grad_(False)

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of ids."""
        return code_grid(image_size, self.stride)

    def forward(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Int[Tensor, "B N"] | Int[Tensor, "B M"]:
        """Ids of images in [0, 1], in raster order, or `only` of some cells."""
        return self.logits(images, only).argmax(dim=1).flatten(1)

    @torch.no_grad()
    def logits(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B K h w"]:
        """The score of each code in each cell; in some cells, as one column."""
        half = self.float16 and images.is_cuda
        with torch.autocast(images.device.type, torch.float16, enabled=half):
            mapped = map_pixels(images)
            return self.encoder(mapped.contiguous(memory_format=torch.channels_last) if half else mapped, only)

    @torch.no_grad()
    def decode(self, ids: Int[Tensor, "B N"], grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """The images of ids, in [0, 1]."""
        if self.decoder is None:
            raise ValueError(
                "DVAETokenizer.decoder must be there to make images of ids; got none. "
                "Give a folder with the encoder's and the decoder's file."
            )
        codes = F.one_hot(ids.unflatten(1, grid), self.vocabulary).movedim(-1, 1)
        with torch.autocast(ids.device.type, enabled=False):
            location = self.decoder(codes.to(next(self.decoder.parameters()).dtype))[:, : self.in_chans]
        return unmap_pixels(at_least_float32(location).sigmoid())
