"""Decoders: MAE's, where mask tokens join the encoded patches, MILAN's, where these stay, CAE's of latents alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.core.ranges import AtLeastOne, AtLeastZero, Depth, Positive, ShareBelowOne
from pantomim.nn.attention import PromptedAttention
from pantomim.nn.blocks import NORM_EPS, Block, DropPath, StreamBlock, drop_path_rates
from pantomim.nn.init import Initialisation, initialise
from pantomim.nn.mlp import Mlp
from pantomim.nn.position import sincos_2d, sincos_2d_rows_first
from pantomim.nn.tokens import put_back, take
from pantomim.nn.vit import Features


@frozen
class DecoderConfig:
    """Sizes of a `MAEDecoder` or `PromptingDecoder`. Paper: He et al. 2022, Table 1a, 1b, whose default this is."""

    width: AtLeastOne = 512
    depth: Depth = 8
    heads: AtLeastOne = 16
    mlp_ratio: float = 4.0  # Hidden width of the MLP over the width
    # Stochastic depth of the last block; earlier ones have linearly less. MAE has none, dBOT has
    drop_path: ShareBelowOne = 0.0

    def build(self, encoder_width: int, num_prefix: int, grid: tuple[int, int], out_dim: int) -> "MAEDecoder":
        """MAE's decoder for an encoder's tokens."""
        return MAEDecoder(self, encoder_width, num_prefix, grid, out_dim)


class _FeatureDecoder(nn.Module):
    """What the decoders of visible patches' features have in common; names as in the authors' `models_mae.py`.

    `out_dim` is the width K of the prediction for a patch.
    """

    block: type[Block] | type["PromptedBlock"]

    def __init__(
        self, config: DecoderConfig, encoder_width: int, num_prefix: int, grid: tuple[int, int], out_dim: int
    ) -> None:
        super().__init__()
        self.config, self.num_prefix, self.grid = config, num_prefix, grid
        width = config.width
        self.decoder_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        table = sincos_2d(width, grid, num_prefix).to(torch.get_default_dtype())
        self.decoder_pos_embed = nn.Parameter(table.unsqueeze(0), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            self.block(width, config.heads, config.mlp_ratio, rate)
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, out_dim)
        initialise(self, "mae")
        nn.init.normal_(self.mask_token, std=0.02)


class MAEDecoder(_FeatureDecoder):
    """A light transformer over all positions; masked ones hold one shared, learned token.

    Paper: He et al. 2022, arXiv:2111.06377, section 3 "MAE decoder".
    """

    block = Block

    def forward(
        self, latent: Features, mask: Mask, everywhere: bool = False, with_class: bool = False
    ) -> Float[Tensor, "B M K"]:
        """Predictions for the masked patches, in the order of `mask.ids_mask`; for all patches if `everywhere`.

        With `with_class` that for the first prefix token, the class token, comes in front.
        """
        tokens = self.decoder_embed(torch.cat([latent.prefix, latent.patches], dim=1))
        prefix, visible = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        position = self.decoder_pos_embed[0, self.num_prefix :]
        visible = visible + F.embedding(mask.ids_keep, position)
        masked = (self.mask_token + position).expand(len(tokens), -1, -1)  # (B, N, W)
        patches = put_back(visible, mask.ids_keep, masked)
        tokens = torch.cat([prefix + self.decoder_pos_embed[:, : self.num_prefix], patches], dim=1)  # (B, P + N, W)
        *blocks, last = self.decoder_blocks
        for block in blocks:
            tokens, _ = block(tokens)
        only = None if everywhere else mask.ids_mask + self.num_prefix  # places among all tokens
        if only is not None and with_class:
            only = torch.cat([torch.zeros_like(only[:, :1]), only], dim=1)
        tokens, _ = last(tokens, only=only)
        if everywhere:
            patches = tokens[:, self.num_prefix :]
            tokens = torch.cat([tokens[:, :1], patches], dim=1) if with_class else patches
        return self.decoder_pred(self.decoder_norm(tokens))


class PromptedBlock(StreamBlock):
    """Masked tokens read all tokens, of which the visible ones never change. Names as in MILAN's code.

    The norm before the attention is the masked tokens'; visible ones are read as they are.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = PromptedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, masked: Float[Tensor, "B M W"], prompt: Float[Tensor, "B T W"]) -> Float[Tensor, "B M W"]:
        """New masked tokens."""
        masked = self.keep(masked)
        normed = self.norm1(masked)
        masked = self.keep(masked + self.drop_path(self.attn(normed, torch.cat([prompt, normed], dim=1))))
        return self.keep(masked + self.drop_path(self.mlp(self.norm2(masked))))


class PromptingDecoder(_FeatureDecoder):
    """MILAN's: masked tokens are worked out, the features of the visible patches stay as they are.

    Paper: Hou et al. 2022, *MILAN*, arXiv:2208.06049, "prompting decoder"; the authors' `models_milan.py`.
    """

    block = PromptedBlock

    def forward(
        self, latent: Features, mask: Mask, everywhere: bool = False, with_class: bool = False
    ) -> Float[Tensor, "B M K"]:
        """Predictions as of `MAEDecoder`; those of visible patches and the class token come from the head alone."""
        tokens = self.decoder_embed(torch.cat([latent.prefix, latent.patches], dim=1))
        position = self.decoder_pos_embed[0, self.num_prefix :]
        prefix = tokens[:, : self.num_prefix] + self.decoder_pos_embed[:, : self.num_prefix]
        visible = tokens[:, self.num_prefix :] + F.embedding(mask.ids_keep, position)
        masked = self.mask_token + F.embedding(mask.ids_mask, position)  # (B, M, W)
        prompt = torch.cat([prefix, visible], dim=1)
        for block in self.decoder_blocks:
            masked = block(masked, prompt)
        if everywhere:
            order = torch.cat([mask.ids_keep, mask.ids_mask], dim=1)  # every patch once
            masked = take(torch.cat([visible, masked], dim=1), order.argsort(dim=1))
        if with_class:
            masked = torch.cat([prefix[:, :1], masked], dim=1)
        return self.decoder_pred(self.decoder_norm(masked))


@frozen
class LatentDecoderConfig:
    """Sizes of a `LatentDecoder`; its width and heads are the regressor's."""

    depth: AtLeastZero = 4  # Number of blocks; 0: the head reads the latents as they come, without positions and norm
    mlp_ratio: float = 4.0  # Hidden width of the MLP over the width
    layer_scale: Positive | None = 0.1  # Initial value of the branches' scales; None: no scales
    drop_path: ShareBelowOne = 0.0  # Stochastic depth of the last block; earlier ones have linearly less


class LatentDecoder(nn.Module):
    """CAE's decoder: self-attention among predicted latents, without visible patches and without a class token.

    `out_dim` is what is predicted for a patch: the values of its target, or the entries of a vocabulary.

    Paper: Chen et al., arXiv:2202.03026, "decoder".
    """

    position: Tensor

    def __init__(
        self,
        config: LatentDecoderConfig,
        width: int,
        heads: int,
        grid: tuple[int, int],
        out_dim: int,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        table = sincos_2d_rows_first(width, grid).to(torch.get_default_dtype())
        self.register_buffer("position", table, persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, config.mlp_ratio, rate, bias="qv", layer_scale=config.layer_scale)
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if config.depth else None
        self.head = nn.Linear(width, out_dim)
        initialise(self, initialisation, self.blocks)

    def forward(self, latents: Float[Tensor, "B M D"], ids: Int[Tensor, "B M"]) -> Float[Tensor, "B M K"]:
        """Predictions for the patches `ids`, whose latents these are."""
        if self.norm is None:
            return self.head(latents)
        tokens = latents + F.embedding(ids, self.position)
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.head(self.norm(tokens))
