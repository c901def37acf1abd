"""The vision transformer that every method trains: it runs on the patches it is given and on no others."""

import math
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.frozen import frozen
from pantomim.nn.position import resample, sincos_2d
from pantomim.nn.tokens import channel_values, patch_grid, standardise, take

NORM_EPS = 1e-6  # every layer norm of the MAE family


class Features(NamedTuple):
    """What an encoder says of a batch.

    `prefix` holds the class and register tokens, `patches` the patches in the order of the ids that were asked for.
    `attention` (softmaxed, prefix tokens first) is there only if a layer was asked for.
    """

    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B V D"]
    attention: Float[Tensor, "B heads T T"] | None = None


class PatchEmbed(nn.Module):
    """A strided convolution written as a matrix product, so that it can run on some of the patches only."""

    def __init__(self, patch_size: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "B C H W"], ids_keep: Int[Tensor, "B V"] | None) -> Float[Tensor, "B V D"]:
        """Project the patches `ids_keep`, or all of them."""
        batch, channels, height, width = images.shape
        size = self.patch_size
        cells = images.reshape(batch, channels, height // size, size, width // size, size)
        pixels = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
        if ids_keep is not None:
            pixels = take(pixels, ids_keep)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention; the weights are computed only when they are asked for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"Attention.heads must divide the width {width}; got {heads}. Change one of the two.")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        need_weights: bool = False,
        queries: Float[Tensor, "B Q D"] | None = None,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B heads Q T"] | None]:
        """Tokens mixed for the `queries` (by default the tokens) and, if asked for, the softmaxed attention."""
        query, key, value = self._project(tokens, queries)
        weights = None
        if need_weights:
            weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(dim=-1)
            mixed = weights @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2)), weights

    def _project(
        self, tokens: Float[Tensor, "B T D"], queries: Float[Tensor, "B Q D"] | None
    ) -> list[Float[Tensor, "B heads _ E"]]:
        """Query, key and value of each head."""
        if queries is None:
            parts = self.qkv(tokens).chunk(3, dim=-1)  # gradients come back with a single copy
        else:
            width = queries.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            parts = (
                F.linear(queries, weight[:width], bias[:width]),
                *F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1),
            )
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Token by token."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for some images and scales up the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Identity in evaluation mode and at rate 0."""
        if self.rate == 0.0 or not self.training:
            return branch
        shape = (len(branch),) + (1,) * (branch.dim() - 1)
        return branch * branch.new_empty(shape).bernoulli_(1 - self.rate).div_(1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block; the unit for sharding."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        need_weights: bool = False,
        wanted: Int[Tensor, "B Q"] | None = None,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B heads Q T"] | None]:
        """New tokens (those at the places `wanted`, or all) and, if asked for, the attention weights.

        A last block of which only some tokens are read need not compute the others: they serve as keys and values.
        """
        normed, queries = self.norm1(tokens), None
        if wanted is not None:
            tokens, queries = take(tokens, wanted), take(normed, wanted)
        mixed, weights = self.attn(normed, need_weights, queries)
        tokens = tokens + self.drop_path(mixed)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens))), weights


def initialise(module: nn.Module) -> None:
    """MAE's initialisation of linear layers, layer norms and patch kernels; for `nn.Module.apply`.

    Source: the authors' `models_mae.py`: Xavier-uniform matrices, zero biases; the patch kernel is seen as a matrix
    and its bias keeps the convolution's default.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))  # a view: the kernel is filled in place


class Encoder(nn.Module):
    """Vision transformer on images and the ids of the patches to keep; parameter names as in timm.

    Args:
        image_size: Height and width, in pixels.
        patch_size: Side of a patch, in pixels.
        in_chans: Channels of an image.
        width: Width D of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over the width.
        registers: Number of register tokens.
        class_token: Whether there is a class token.
        position: "sincos" (a fixed table: sine-cosine, unless loaded weights bring their own) or "learned".
        drop_path: Rate of the last block; blocks before it have linearly less.
        mean: Mean of each channel, in the scale of the images.
        std: Deviation of each channel.

    Raises:
        ValueError: if sizes do not fit each other.

    Paper: Dosovitskiy et al. 2021, arXiv:2010.11929; He et al. 2022, arXiv:2111.06377, appendix A.1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        registers: int = 0,
        class_token: bool = True,
        position: Literal["sincos", "learned"] = "sincos",
        drop_path: float = 0.0,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.config = EncoderConfig(  # a record of the arguments, for whoever saves the encoder or builds its twin
            image_size=image_size,
            patch_size=patch_size,
            in_chans=in_chans,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            registers=registers,
            class_token=class_token,
            position=position,
            drop_path=drop_path,
            mean=mean,
            std=std,
        )
        self.image_size, self.patch_size, self.in_chans = image_size, patch_size, in_chans
        self.width, self.depth = width, depth
        self.grid = patch_grid(image_size, patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_prefix = int(class_token) + registers
        self.register_buffer("mean", channel_values("Encoder.mean", mean, in_chans), persistent=False)
        self.register_buffer("std", channel_values("Encoder.std", std, in_chans), persistent=False)
        self.patch_embed = PatchEmbed(patch_size, in_chans, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(
            torch.empty(1, self.num_prefix + self.num_patches, width), requires_grad=position == "learned"
        )
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate) for rate in rates)
        self.norm: nn.Module = nn.LayerNorm(width, eps=NORM_EPS)

        self.apply(initialise)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        if position == "sincos":
            with torch.no_grad():
                self.pos_embed.copy_(sincos_2d(width, self.grid, self.num_prefix))
        else:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(
        self, images: Float[Tensor, "B C H W"], ids_keep: Int[Tensor, "B V"] | None = None
    ) -> Float[Tensor, "B V D"]:
        """Projected patches with their positions, before the first block.

        Raises:
            ValueError: if the images have another size or number of channels than the encoder.
        """
        expected = (self.in_chans, *self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"Encoder.images must be (B, {', '.join(map(str, expected))}), channels first; got "
                f"{tuple(images.shape)}. Resize the images, or build the encoder for this size and these channels."
            )
        patches = self.patch_embed(standardise(images, self.mean, self.std), ids_keep)
        position = self.pos_embed[0, self.num_prefix :]
        return patches + (position if ids_keep is None else F.embedding(ids_keep, position))

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        ids_keep: Int[Tensor, "B V"] | None = None,
        attention_layer: int | None = None,
    ) -> Features:
        """Encode the patches `ids_keep` (all, if None); other patches are never touched.

        Args:
            images: Scaled, not normalised: the encoder subtracts its mean and divides by its deviation.
            ids_keep: Patches to encode.
            attention_layer: Also return the attention of this block (negative: from the last).
        """
        patches = self.embed(images, ids_keep)  # (B, V, D)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = patches
        if prefix:
            start = torch.cat(prefix, dim=1) + self.pos_embed[:, : self.num_prefix]
            tokens = torch.cat([start.expand(len(images), -1, -1), patches], dim=1)  # (B, P + V, D)
        wanted = None if attention_layer is None else range(self.depth)[attention_layer]
        attention = None
        for index, block in enumerate(self.blocks):
            tokens, weights = block(tokens, need_weights=index == wanted)
            attention = attention if weights is None else weights
        tokens = self.norm(tokens)
        return Features(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :], attention)


@frozen
class EncoderConfig:
    """Sizes of an `Encoder`.

    Args:
        image_size: Height and width, in pixels.
        patch_size: Side of a patch, in pixels.
        in_chans: Channels of an image.
        width: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Hidden width of the MLP over the width.
        registers: Number of register tokens.
        class_token: Whether there is a class token.
        position: A fixed table (sine-cosine, unless loaded weights bring their own), or a learned one.
        drop_path: Stochastic depth of the last block; earlier ones have linearly less.
        mean: Mean of each channel, in the scale of the images.
        std: Deviation of each channel.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    registers: int = 0
    class_token: bool = True
    position: Literal["sincos", "learned"] = "sincos"
    drop_path: float = 0.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        patch_grid(self.image_size, self.patch_size)
        for name in ("patch_size", "in_chans", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"EncoderConfig.{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("mean", "std"):
            channel_values(f"EncoderConfig.{name}", getattr(self, name), self.in_chans)
        if min(self.std) <= 0:
            raise ValueError(
                f"EncoderConfig.std must be positive; got {self.std}. Drop a constant channel: it has nothing to teach."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(self.image_size, self.patch_size)

    @property
    def num_prefix(self) -> int:
        """Class and register tokens."""
        return int(self.class_token) + self.registers

    def build(self) -> Encoder:
        """The encoder, with MAE's initialisation."""
        return Encoder(**asdict(self))


def resize_encoder_weights(
    weights: dict[str, Tensor], config: EncoderConfig, image_size: tuple[int, int]
) -> tuple[dict[str, Tensor], EncoderConfig]:
    """Weights and config of the same encoder for images of another size; the position table is resampled."""
    resized = replace(config, image_size=image_size)
    table = resample(weights["pos_embed"], config.grid, resized.grid, config.num_prefix)
    return {**weights, "pos_embed": table}, resized


# Width, depth and heads under timm's names; "micro" is ours, for images of CIFAR's size on a CPU.
ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "micro": {"width": 96, "depth": 4, "heads": 3},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
