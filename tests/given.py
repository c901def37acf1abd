"""A teacher that answers what it is given."""

import torch

from pantomim.teachers.base import Guidance, Teacher


class Given(Teacher):
    """Features and attention of three images on a grid of 4 x 4, in turn; `asked` lists the queries."""

    name, queries = "given", ("class", "mean")

    def __init__(self, width=16, seed=5, num_prefix=1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randn(3, num_prefix + 16, width, generator=generator) * 3 + 1
        self.attention = torch.rand(3, 16, generator=generator) / 20
        self.num_prefix, self.width, self.grid, self.asked = num_prefix, width, (4, 4), []
        self.requires_grad_(False).eval()

    def forward(self, images, query=None):
        self.asked.append(query)
        rows = torch.arange(len(images)) % 3
        tokens, attention = self.tokens[rows], self.attention[rows]
        attention = attention.flip(1) if query == "mean" else attention
        return Guidance(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :], attention if query else None)
