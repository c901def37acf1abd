"""MAE's decoder: mask tokens join the encoded patches, and hidden patches are predicted."""

from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.frozen import frozen
from pantomim.masking.mask import Mask
from pantomim.nn.position import sincos_2d
from pantomim.nn.tokens import put_back
from pantomim.nn.vit import NORM_EPS, Block, Features, initialise


class MAEDecoder(nn.Module):
    """A light transformer over all positions; hidden ones hold one shared, learned token.

    Args:
        encoder_width: Width of the encoder's tokens.
        num_prefix: Class and register tokens that come with them.
        grid: Rows and columns of patches.
        width: Width of the decoder.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over the width.
        out_dim: What is predicted for a patch, in numbers.

    Paper: He et al. 2022, arXiv:2111.06377, section 3 "MAE decoder"; names as in the authors' `models_mae.py`.
    """

    def __init__(
        self,
        encoder_width: int,
        num_prefix: int,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        out_dim: int,
    ) -> None:
        super().__init__()
        self.num_prefix, self.grid = num_prefix, grid
        self.decoder_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_2d(width, grid, num_prefix).to(torch.get_default_dtype()).unsqueeze(0), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, out_dim)
        self.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Features, mask: Mask, everywhere: bool = False) -> Float[Tensor, "B M K"]:
        """Predictions for the hidden patches, in the order of `mask.ids_mask`; for all patches if `everywhere`."""
        tokens = self.decoder_embed(torch.cat([latent.prefix, latent.patches], dim=1))
        prefix, visible = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        prefix_position = self.decoder_pos_embed[:, : self.num_prefix]
        position = self.decoder_pos_embed[0, self.num_prefix :]
        visible = visible + F.embedding(mask.ids_keep, position)
        hidden = (self.mask_token + position).expand(len(tokens), -1, -1)  # (B, N, W)
        patches = put_back(visible, mask.ids_keep, hidden)
        tokens = torch.cat([prefix + prefix_position, patches], dim=1)  # (B, P + N, W)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            tokens, _ = block(tokens)
        wanted = None if everywhere else mask.ids_mask + self.num_prefix  # places among all tokens
        tokens, _ = last(tokens, wanted=wanted)
        patches = tokens[:, self.num_prefix :] if everywhere else tokens
        return self.decoder_pred(self.decoder_norm(patches))


@frozen
class DecoderConfig:
    """Sizes of a `MAEDecoder`. Paper: Table 1a, 1b; the default 512 wide, 8 deep is the paper's.

    Raises:
        ValueError: if a size is smaller than one.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig.{name} must be at least 1; got {getattr(self, name)}.")

    def build(self, encoder_width: int, num_prefix: int, grid: tuple[int, int], out_dim: int) -> MAEDecoder:
        """The decoder for an encoder's tokens, predicting `out_dim` numbers a patch."""
        return MAEDecoder(encoder_width, num_prefix, grid, out_dim=out_dim, **asdict(self))
