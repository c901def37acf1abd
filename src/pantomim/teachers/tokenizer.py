"""A tokenizer's encoder as a teacher: its features of each patch, before it chooses a code."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.nn.dvae import map_pixels
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.tokenizers.dvae import DVAETokenizer


class TokenizerTeacher(Teacher):
    """The last group's output of a discrete auto-encoder's encoder: no class token, no attention.

    Paper: Liu et al., arXiv:2209.03917, has DALL-E's tokenizer among its teachers.
    Deviation: which of its layers they took is not stated; this is the one before the scores of the codes.
    """

    def __init__(self, tokenizer: DVAETokenizer, grid: tuple[int, int], name: str) -> None:
        super().__init__()
        self.encoder, self.name, self.width, self.grid = tokenizer.encoder, name, tokenizer.encoder.width, grid
        self.image_size = (grid[0] * tokenizer.stride, grid[1] * tokenizer.stride)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"], query: Query | None = None) -> Guidance:
        """Features; see `Teacher.forward`. What it sees is cut to [0, 1], the range that it maps."""
        self.check_query(query)
        if images.shape[2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.autocast(images.device.type, enabled=False):  # as the tokenizer itself
            maps = self.encoder.features(map_pixels(images))
        patches = maps.flatten(2).mT
        return Guidance(patches[:, :0], patches)
