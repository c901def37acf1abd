"""Decoders: MAE's, where mask tokens join the encoded patches, MILAN's, where these stay, CAE's of latents alone."""

from dataclasses import asdict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.mask import Mask
from pantomim.nn.position import sincos_2d, sincos_2d_rows_first
from pantomim.nn.tokens import put_back, take
from pantomim.nn.vit import (
    NORM_EPS,
    Block,
    DropPath,
    Features,
    Initialisation,
    Mlp,
    initialise,
    initialise_stack,
)


class _FeatureDecoder(nn.Module):
    """The parts of a decoder that gets what an encoder says of the visible patches; `MAEDecoder` explains them."""

    block: type[Block] | type["PromptedBlock"]

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
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_prefix, self.grid = num_prefix, grid
        self.decoder_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_2d(width, grid, num_prefix).to(torch.get_default_dtype()).unsqueeze(0), requires_grad=False
        )
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.decoder_blocks = nn.ModuleList(self.block(width, heads, mlp_ratio, rate) for rate in rates)
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, out_dim)
        self.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)


class MAEDecoder(_FeatureDecoder):
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
        drop_path: Rate of the last block; blocks before it have linearly less. MAE has none, dBOT has.

    Paper: He et al. 2022, arXiv:2111.06377, section 3 "MAE decoder"; names as in the authors' `models_mae.py`.
    """

    block = Block

    def forward(
        self, latent: Features, mask: Mask, everywhere: bool = False, with_class: bool = False
    ) -> Float[Tensor, "B M K"]:
        """Predictions for the hidden patches, in the order of `mask.ids_mask`; for all patches if `everywhere`.

        Args:
            latent: What the encoder says of the visible patches.
            mask: Which patches these are.
            everywhere: Predict visible patches too.
            with_class: Predict the class token too, in front of the patches: it is the first prefix token.
        """
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
        if wanted is not None and with_class:
            wanted = torch.cat([torch.zeros_like(wanted[:, :1]), wanted], dim=1)
        tokens, _ = last(tokens, wanted=wanted)
        if everywhere:
            patches = tokens[:, self.num_prefix :]
            tokens = torch.cat([tokens[:, :1], patches], dim=1) if with_class else patches
        return self.decoder_pred(self.decoder_norm(tokens))


class PromptedBlock(nn.Module):
    """Hidden tokens read all tokens of which the visible ones never change; only the hidden ones are new.

    The norm before the attention is the hidden tokens'; visible ones are read as they are. Names as in MILAN's code.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = PromptedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Float[Tensor, "B M W"], prompt: Float[Tensor, "B T W"]) -> Float[Tensor, "B M W"]:
        """New hidden tokens."""
        normed = self.norm1(hidden)
        hidden = hidden + self.drop_path(self.attn(normed, torch.cat([prompt, normed], dim=1)))
        return hidden + self.drop_path(self.mlp(self.norm2(hidden)))


class PromptedAttention(nn.Module):
    """Multi-head attention with one projection of the queries and one of keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"PromptedAttention.heads must divide the width {width}; got {heads}. Change one of the two."
            )
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Float[Tensor, "B M W"], tokens: Float[Tensor, "B T W"]) -> Float[Tensor, "B M W"]:
        """Tokens mixed for the queries."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(queries), *self.kv(tokens).chunk(2, dim=-1))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class PromptingDecoder(_FeatureDecoder):
    """MILAN's: hidden tokens are worked out, what the encoder says of the visible patches stays as it is.

    Arguments as of `MAEDecoder`.

    Paper: Hou et al. 2022, *MILAN*, arXiv:2208.06049, "prompting decoder"; names as in the authors' `models_milan.py`.
    """

    block = PromptedBlock

    def forward(
        self, latent: Features, mask: Mask, everywhere: bool = False, with_class: bool = False
    ) -> Float[Tensor, "B M K"]:
        """Predictions as of `MAEDecoder`; of visible patches and the class token it is the head that makes them."""
        tokens = self.decoder_embed(torch.cat([latent.prefix, latent.patches], dim=1))
        position = self.decoder_pos_embed[0, self.num_prefix :]
        prefix = tokens[:, : self.num_prefix] + self.decoder_pos_embed[:, : self.num_prefix]
        visible = tokens[:, self.num_prefix :] + F.embedding(mask.ids_keep, position)
        hidden = self.mask_token + F.embedding(mask.ids_mask, position)  # (B, M, W)
        prompt = torch.cat([prefix, visible], dim=1)
        for block in self.decoder_blocks:
            hidden = block(hidden, prompt)
        if everywhere:
            order = torch.cat([mask.ids_keep, mask.ids_mask], dim=1)  # every patch once
            hidden = take(torch.cat([visible, hidden], dim=1), order.argsort(dim=1))
        if with_class:
            hidden = torch.cat([prefix[:, :1], hidden], dim=1)
        return self.decoder_pred(self.decoder_norm(hidden))


@frozen
class DecoderConfig:
    """Sizes of a `MAEDecoder`. Paper: Table 1a, 1b; the default 512 wide, 8 deep is the paper's.

    Args:
        width: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over the width.
        drop_path: Stochastic depth of the last block; earlier ones have linearly less.

    Raises:
        ValueError: if a size is smaller than one, or the rate no share.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"DecoderConfig.{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"DecoderConfig.drop_path must be in [0, 1); got {self.drop_path}. 0 means none.")

    def build(self, encoder_width: int, num_prefix: int, grid: tuple[int, int], out_dim: int) -> MAEDecoder:
        """The decoder for an encoder's tokens, predicting `out_dim` numbers a patch."""
        return MAEDecoder(encoder_width, num_prefix, grid, out_dim=out_dim, **asdict(self))

    def build_prompting(
        self, encoder_width: int, num_prefix: int, grid: tuple[int, int], out_dim: int
    ) -> PromptingDecoder:
        """A prompting decoder of these sizes."""
        return PromptingDecoder(encoder_width, num_prefix, grid, out_dim=out_dim, **asdict(self))


class LatentDecoder(nn.Module):
    """CAE's decoder: self-attention among predicted latents, without visible patches and without a class token.

    Args:
        grid: Rows and columns of patches.
        width: Width of a latent.
        depth: Number of blocks; 0: the head reads the latents as they come, without positions and norm.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over the width.
        layer_scale: First value of the branches' scales; None: no scales.
        drop_path: Rate of the last block; blocks before it have linearly less.
        out_dim: What is predicted for a patch: numbers, or the words of a vocabulary.
        initialisation: Whose first values, as of the encoder.

    Paper: Chen et al., arXiv:2202.03026, "decoder".
    """

    position: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        out_dim: int,
        initialisation: Initialisation = "cae",
    ) -> None:
        super().__init__()
        table = sincos_2d_rows_first(width, grid).to(torch.get_default_dtype())
        self.register_buffer("position", table, persistent=False)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, rate, bias="qv", layer_scale=layer_scale) for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if depth else None
        self.head = nn.Linear(width, out_dim)
        initialise_stack(self, self.blocks, initialisation)

    def forward(self, latents: Float[Tensor, "B M D"], ids: Int[Tensor, "B M"]) -> Float[Tensor, "B M K"]:
        """Predictions for the patches `ids`, whose latents these are."""
        if self.norm is None:
            return self.head(latents)
        tokens = latents + F.embedding(ids, self.position)
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.head(self.norm(tokens))


@frozen
class LatentDecoderConfig:
    """Sizes of a `LatentDecoder`; its width and heads are the regressor's.

    Raises:
        ValueError: if the depth is negative.
    """

    depth: int = 4
    mlp_ratio: float = 4.0
    layer_scale: float | None = 0.1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"LatentDecoderConfig.depth must not be negative; got {self.depth}. 0 means no decoder.")

    def build(
        self, width: int, heads: int, grid: tuple[int, int], out_dim: int, initialisation: Initialisation
    ) -> LatentDecoder:
        """The decoder for a regressor's latents, predicting `out_dim` numbers a patch."""
        return LatentDecoder(grid, width, heads=heads, out_dim=out_dim, initialisation=initialisation, **asdict(self))
