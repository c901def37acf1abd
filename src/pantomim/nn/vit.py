"""The vision transformer that every method trains: it runs on the patches it is given and on no others."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.ranges import Depth, Positive, Range, ShareBelowOne, Size
from pantomim.core.scales import Scale
from pantomim.nn.attention import AttentionBias, Places
from pantomim.nn.blocks import NORM_EPS, Block, PatchEmbed, drop_path_rates
from pantomim.nn.init import SCHEMES, Initialisation, initialise
from pantomim.nn.mlp import PLAIN_MLP, MlpConfig
from pantomim.nn.position import sincos_2d, sincos_2d_rows_first
from pantomim.nn.relative import RelativeBias, index_of, num_relative_rows, relative_index
from pantomim.nn.rope import Rope, rope_of, rope_table
from pantomim.nn.tokens import AnyImages, as_map, channel_values, normalised, patch_grid

Position = Literal["sincos", "sincos_rows_first", "learned", "none"]
RelativePosition = Literal["none", "shared", "blocks"]
Resampling = Literal["authors", "timm", "stretched"]
Interpolation = Literal["bicubic", "bilinear"]


class Features(NamedTuple):
    """What an encoder makes of a batch."""

    prefix: Float[Tensor, "B P D"]  # class and register tokens
    patches: Float[Tensor, "B V D"]  # in the order of the ids that were asked for
    attention: Float[Tensor, "B heads T T"] | None = None  # softmaxed, prefix tokens first, where asked for


class MaskTokens(NamedTuple):
    """BEiT's way of masking: the encoder runs on every patch, with a learned token in the place of the masked ones."""

    masked: Bool[Tensor, "B N"]
    token: Float[Tensor, "1 1 D"]  # before positions are added


@frozen
class Norms:
    """The layer norms of an `Encoder`."""

    eps: Positive = NORM_EPS  # Added to the variance, in all of them
    first: bool = False  # A norm of the tokens before the first block, as in CLIP
    final: bool = True  # A norm of the tokens after the last block
    qk: bool = False  # A norm of each head's queries, and one of its keys (QK-norm)


@frozen
class EncoderConfig:
    """Sizes of an `Encoder`.

    Args:
        image_size: Height and width, in pixels.
        patch_size: Side of a patch, in pixels.
        mlp_ratio: Hidden width of the MLP over the width.
        registers: Number of register tokens.
        position: "sincos" (a fixed table: sine-cosine, unless loaded weights bring their own), "sincos_rows_first" (the
            same with the row in the first half of the channels, as in CAE), "learned" or "none".
        relative_position: Learned biases for how far apart two patches are: "none", "shared" (one table for all blocks)
            or "blocks" (each block's own).
        rope: Rotary positions of the patches; None: none.
        resampling: How tables of positions are made for another grid: "authors" (bicubic as MAE's, relative ones by
            BEiT's cubic spline), "timm" (bicubic with antialiasing, linear) or "stretched" (bicubic by a factor, as
            dBOT's authors do with CLIP's).
        attention_bias: What has a bias in attention: "qkv" queries, keys and values, "qv" queries and values, "none".
        mlp: What lies within the MLPs of the blocks.
        layer_scale: Initial value of a learned scale of each channel of both branches of a block; None: no scales.
        initialisation: Whose initial weights: "mae"; "beit", also of CAE's ViT-L; "cae", of its ViT-S and ViT-B;
            "mocov3"; "normal", MaskFeat's.
        drop_path: Stochastic depth of the last block; blocks before it have linearly less.
        mean: Mean of each channel, in the scale of the images.
        std: Standard deviation of each channel.
        interpolation: How the images that it was trained on were resized, where that is known: a record.
    """

    image_size: tuple[Size, Size] = (224, 224)
    patch_size: Size = 16
    in_chans: Size = 3
    width: Size = 768
    depth: Depth = 12
    heads: Size = 12
    mlp_ratio: Annotated[float, Range(above=0, most=256)] = 4.0
    registers: Annotated[int, Range(least=0, most=2**16)] = 0
    class_token: bool = True
    position: Position = "sincos"
    relative_position: RelativePosition = "none"
    rope: Rope | None = None
    resampling: Resampling = "authors"
    attention_bias: AttentionBias = "qkv"
    mlp: MlpConfig = PLAIN_MLP
    norms: Norms = Norms()
    layer_scale: Positive | None = None
    initialisation: Initialisation = "mae"
    drop_path: ShareBelowOne = 0.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)  # a constant channel has nothing to teach: drop it
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        patch_grid(self.image_size, self.patch_size)
        if self.relative_position != "none" and self.registers:
            raise ValueError(
                f"EncoderConfig.registers must be 0 with relative positions, which know no place of registers; got "
                f"{self.registers}. Leave out one of the two."
            )
        for name in ("mean", "std"):
            channel_values(f"EncoderConfig.{name}", getattr(self, name), self.in_chans)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size)

    @property
    def num_prefix(self) -> int:
        """Class and register tokens."""
        return int(self.class_token) + self.registers

    def build(self) -> "Encoder":
        """The encoder, with initial weights drawn from torch's global generator."""
        return Encoder(self)


def block_numbers(indices: int | Sequence[int] | None, depth: int) -> set[int]:
    """The blocks that `forward_intermediates` is asked for, from 0 on."""
    if isinstance(indices, int):
        if not 1 <= indices <= depth:
            raise ValueError(f"indices must be from 1 to the {depth} blocks; got {indices}. Ask for fewer.")
        indices = range(depth - indices, depth)
    return {range(depth)[index] for index in (range(depth) if indices is None else indices)}


class Encoder(nn.Module):
    """Vision transformer on images and the ids of the patches to keep; parameter names as in timm.

    Paper: Dosovitskiy et al. 2021, arXiv:2010.11929; He et al. 2022, arXiv:2111.06377, appendix A.1; Bao et al. 2022,
        arXiv:2106.08254, section 2.5 (relative positions, scales, no bias of keys).
    """

    mean: Tensor
    std: Tensor
    relative_index: Tensor | None
    scale: Scale | None = None  # of the images that its weights were trained on, where that is known
    rope: Tensor | None
    transform: Any = None  # from pictures to its images, of one that `pantomim.load` gave

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.patch_size, self.in_chans = config.image_size, config.patch_size, config.in_chans
        self.width, self.depth = config.width, config.depth
        self.grid, self.num_prefix = config.grid, config.num_prefix
        self.has_class_token, self.interpolation = config.class_token, config.interpolation
        self.statistics, self.stride = (config.mean, config.std), (config.patch_size, config.patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.register_buffer("mean", channel_values("Encoder.mean", config.mean, self.in_chans), persistent=False)
        self.register_buffer("std", channel_values("Encoder.std", config.std, self.in_chans), persistent=False)
        self.patch_embed = PatchEmbed(self.patch_size, self.in_chans, self.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, self.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.registers, self.width)) if config.registers else None
        self.pos_embed: nn.Parameter | None = None
        if config.position != "none":  # a parameter even where it is fixed, so that checkpoints have it as timm's do
            table = torch.empty(1, self.num_prefix + self.num_patches, self.width)
            self.pos_embed = nn.Parameter(table, requires_grad=config.position == "learned")
        rows = 0 if config.relative_position == "none" else num_relative_rows(self.grid, config.class_token)
        self.rel_pos_bias = RelativeBias(rows, config.heads) if config.relative_position == "shared" else None
        index = relative_index(self.grid, config.class_token) if rows else None
        self.register_buffer("relative_index", index, persistent=False)
        rope = None
        if config.rope is not None:
            head_width = self.width // config.heads
            rope = rope_table(config.rope, self.grid, head_width, self.num_prefix).to(torch.get_default_dtype())
        self.register_buffer("rope", rope, persistent=False)
        eps, norms = config.norms.eps, config.norms
        self.norm_pre = nn.LayerNorm(self.width, eps=eps) if norms.first else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                self.width,
                config.heads,
                config.mlp_ratio,
                rate,
                bias=config.attention_bias,
                layer_scale=config.layer_scale,
                relative_rows=rows if config.relative_position == "blocks" else 0,
                mlp=config.mlp,
                norm_eps=eps,
                qk_norm=norms.qk,
            )
            for rate in drop_path_rates(config.drop_path, self.depth)
        )
        self.norm: nn.Module = nn.LayerNorm(self.width, eps=eps) if norms.final else nn.Identity()
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        scheme, position = self.config.initialisation, self.config.position
        initialise(self, scheme, self.blocks)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                SCHEMES[scheme].token(token)
        if self.pos_embed is not None:
            if position == "learned":
                SCHEMES[scheme].table(self.pos_embed)
            else:
                table = sincos_2d if position == "sincos" else sincos_2d_rows_first
                self.pos_embed.copy_(table(self.width, self.grid, self.num_prefix))

    def forward(
        self,
        images: AnyImages,
        ids_keep: Int[Tensor, "B V"] | None = None,
        mask_tokens: MaskTokens | None = None,
        only: Int[Tensor, "B M"] | None = None,
    ) -> Features:
        """Encode the patches `ids_keep` (all, if None); other patches are never touched.

        Images are scaled, not normalised: the encoder subtracts its mean and divides by its std. Whole numbers, as
        they are stored, are scaled first. `mask_tokens` stand in the place of some patches. `only` are the places,
        among the encoded patches, of those that are read afterwards: the last block computes no others, nor the prefix.
        """
        tokens, places = self.enter(images, ids_keep, mask_tokens)
        read = None if only is None else only + self.num_prefix
        for block in self.blocks:
            tokens, _ = block(tokens, only=read if block is self.blocks[-1] else None, places=places)
        tokens = self.norm(tokens)
        return self._features(tokens, None) if only is None else Features(tokens[:, :0], tokens)

    def each_block(self, images: AnyImages, need_attention: bool = False) -> Iterator[Features]:
        """The output of each block on all patches, before the final norm; with its attention if asked for."""
        tokens, places = self.enter(images)
        for block in self.blocks:
            tokens, weights = block(tokens, need_weights=need_attention, places=places)
            yield self._features(tokens, weights)

    def forward_intermediates(
        self,
        images: AnyImages,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of some blocks, as timm gives them: maps ("NCHW") or tokens ("NLC") of the last n, these, or all.

        Beside them all tokens at the end, prefix first, after the final norm; by `intermediates_only` nothing else.
        With prefix tokens each output is a pair (patches, prefix). `norm` also normalises the outputs. By `stop_early`
        the end is the last block that is asked for.
        """
        chosen = block_numbers(indices, self.depth)
        blocks = range(max(chosen) + 1) if stop_early else range(self.depth)
        last, found = None, list[Any]()
        for number, last in zip(blocks, self.each_block(images), strict=False):
            if number in chosen:
                prefix, patches = (self.norm(part) if norm else part for part in (last.prefix, last.patches))
                patches = as_map(patches, self.grid) if output_fmt == "NCHW" else patches
                found.append((patches, prefix) if return_prefix_tokens and self.num_prefix else patches)
        assert last is not None
        return found if intermediates_only else (self.norm(torch.cat([last.prefix, last.patches], dim=1)), found)

    def enter(
        self,
        images: AnyImages,
        ids_keep: Int[Tensor, "B V"] | None = None,
        mask_tokens: MaskTokens | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Places]:
        """What the first block gets: prefix tokens and patches with their positions, and where they stand."""
        tokens = self.embed(images, ids_keep, mask_tokens)  # (B, V, D)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            start = torch.cat(prefix, dim=1)
            if self.pos_embed is not None:
                start = start + self.pos_embed[:, : self.num_prefix]
            # `len` would fix B in exports
            tokens = torch.cat([start.expand(images.shape[0], -1, -1), tokens], dim=1)  # (B, P + V, D)
        tokens = self.norm_pre(tokens)
        rope = None if self.rope is None else rope_of(self.rope, ids_keep, self.num_prefix)
        if self.relative_index is None:
            return tokens, Places(rope=rope)
        index = self.relative_index.unsqueeze(0)  # one matrix where all images have all patches
        if ids_keep is not None:
            index = index_of(self.relative_index, ids_keep, self.num_prefix)
        if self.rel_pos_bias is not None:
            return tokens, Places(self.rel_pos_bias(index), rope=rope)  # one table: looked up once
        return tokens, Places(rows=index, rope=rope)

    def embed(
        self,
        images: AnyImages,
        ids_keep: Int[Tensor, "B V"] | None = None,
        mask_tokens: MaskTokens | None = None,
    ) -> Float[Tensor, "B V D"]:
        """Projected patches with their positions, before the first block."""
        given = normalised(self, images, self.patch_embed.proj.weight.dtype)
        patches = self.patch_embed(given, ids_keep)
        if mask_tokens is not None:
            if ids_keep is not None:
                raise ValueError("Encoder.mask_tokens must be None where ids_keep is given; got both. Choose one.")
            patches = torch.where(mask_tokens.masked.unsqueeze(-1), mask_tokens.token, patches)
        if self.pos_embed is None:
            return patches
        position = self.pos_embed[0, self.num_prefix :]
        return patches + (position if ids_keep is None else F.embedding(ids_keep, position))

    def _features(self, tokens: Float[Tensor, "B T D"], attention: Tensor | None) -> Features:
        return Features(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :], attention)


# Width, depth and heads under timm's names; "micro" is ours, for images of CIFAR's size on a CPU.
ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "micro": {"width": 96, "depth": 4, "heads": 3},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
