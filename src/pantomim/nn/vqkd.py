"""The networks that give ids by vector quantisation: an encoder, a projection to short directions, and a codebook.

Paper: Peng et al. 2022, *BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers*, arXiv:2208.06366,
section 2.2; sizes as in the authors' `modeling_vqkd.py`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastTwo
from pantomim.nn.init import initialise
from pantomim.nn.vit import Encoder, EncoderConfig


class TaskLayer(nn.Module):
    """Two linear layers with a tanh between them, in at least float32 whatever autocast says.

    Source: `encode_task_layer` and `decode_task_layer` of the authors' `modeling_vqkd.py`.
    """

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_width))
        initialise(self, "beit")

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N K"]:
        """Token by token."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.layers(at_least_float32(tokens))


@frozen
class VQKDSizes:
    """The sizes of what gives ids; the default codes are those of the paper's section 2.2 and Table 6."""

    encoder: EncoderConfig  # one token a cell
    vocabulary: AtLeastTwo = 8192
    code_width: AtLeastTwo = 32  # codes are directions: in one dimension there are two


class VQKDNetworks(nn.Module):
    """All that gives ids: encoder, projection to what is compared with the codes, and codes of length 1."""

    codebook: Tensor

    def __init__(self, encoder: Encoder, to_code: TaskLayer, codebook: Float[Tensor, "K E"]) -> None:
        super().__init__()
        self.encoder, self.to_code = encoder, to_code
        self.register_buffer("codebook", codebook)

    @property
    def sizes(self) -> VQKDSizes:
        """Of all three."""
        vocabulary, code_width = self.codebook.shape
        return VQKDSizes(self.encoder.config, vocabulary, code_width)

    def forward(
        self, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Int[Tensor, "B N"] | Int[Tensor, "B M"]:
        """The code of each cell, or `only` of some."""
        return nearest(directions(self.encoder, self.to_code, images, only), self.codebook)


def vqkd_networks(sizes: VQKDSizes) -> VQKDNetworks:
    """The networks, with initial weights drawn from torch's global generator; the codes are zeros, to be filled."""
    encoder = sizes.encoder.build()
    codebook = torch.zeros(sizes.vocabulary, sizes.code_width)
    return VQKDNetworks(encoder, TaskLayer(encoder.width, sizes.code_width), codebook)


def directions(
    encoder: Encoder, to_code: TaskLayer, images: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
) -> Float[Tensor, "B _ E"]:
    """What is compared with the codes: one vector of length 1 a patch, or `only` of some patches."""
    return F.normalize(to_code(encoder(images, only=only).patches), dim=-1)


def nearest(directions: Float[Tensor, "B N E"], codebook: Float[Tensor, "K E"]) -> Int[Tensor, "B N"]:
    """The code with the largest cosine; both sides have length 1."""
    with torch.autocast(directions.device.type, enabled=False):
        return (directions @ codebook.to(directions.dtype).mT).argmax(dim=-1)
