"""The vision transformer that every method trains: it runs on the patches it is given and on no others."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.nn.position import resample, sincos_2d, sincos_2d_rows_first
from pantomim.nn.relative import (
    RelativeBias,
    index_of,
    num_relative_rows,
    relative_bias,
    relative_index,
    resize_relative_table,
)
from pantomim.nn.tokens import channel_values, patch_grid, standardise, take

NORM_EPS = 1e-6  # every layer norm of the MAE family

Position = Literal["sincos", "sincos_rows_first", "learned", "none"]
AttentionBias = Literal["qkv", "qv"]
RelativePosition = Literal["none", "shared", "blocks"]
Initialisation = Literal["mae", "beit", "cae", "mocov3", "normal"]


class Features(NamedTuple):
    """What an encoder says of a batch.

    `prefix` holds the class and register tokens, `patches` the patches in the order of the ids that were asked for.
    `attention` (softmaxed, prefix tokens first) is there only if a layer was asked for.
    """

    prefix: Float[Tensor, "B P D"]
    patches: Float[Tensor, "B V D"]
    attention: Float[Tensor, "B heads T T"] | None = None


class Hidden(NamedTuple):
    """Patches that an encoder runs on without seeing them: the same learned token stands in their place.

    Args:
        masked: True where a patch is hidden.
        mask_token: What stands there, before positions are added.
    """

    masked: Bool[Tensor, "B N"]
    mask_token: Float[Tensor, "1 1 D"]


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
    """Multi-head self-attention; the weights are computed only when they are asked for.

    Args:
        width: Width of a token.
        heads: Attention heads.
        bias: What has a bias: "qkv" queries, keys and values, "qv" queries and values (BEiT's and CAE's).
        relative_rows: Rows of the block's own table of relative positions; 0: it has none.
    """

    def __init__(self, width: int, heads: int, bias: AttentionBias = "qkv", relative_rows: int = 0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"Attention.heads must divide the width {width}; got {heads}. Change one of the two.")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias == "qv" else None
        self.relative_position_bias_table = nn.Parameter(torch.zeros(relative_rows, heads)) if relative_rows else None
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        need_weights: bool = False,
        queries: Float[Tensor, "B Q D"] | None = None,
        bias: Float[Tensor, "b heads Q T"] | None = None,
        index: Int[Tensor, "b Q T"] | None = None,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B heads Q T"] | None]:
        """Tokens mixed for the `queries` (by default the tokens) and, if asked for, the softmaxed attention.

        Args:
            tokens: Keys and values.
            need_weights: Whether the attention is asked for.
            queries: What is mixed for.
            bias: Added to the scaled products of queries and keys, the same for all images or each image's own.
            index: Rows of the block's own table, which are added like `bias`.
        """
        query, key, value = self._project(tokens, queries)
        if self.relative_position_bias_table is not None and index is not None:
            bias = relative_bias(self.relative_position_bias_table, index)
        if bias is not None:
            bias = bias.to(query.dtype)
        weights = None
        if need_weights:
            scores = query @ key.mT / math.sqrt(query.shape[-1])
            weights = (scores if bias is None else scores + bias).softmax(dim=-1)
            mixed = weights @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, bias)
        return self.proj(mixed.transpose(1, 2).flatten(2)), weights

    def _project(
        self, tokens: Float[Tensor, "B T D"], queries: Float[Tensor, "B Q D"] | None
    ) -> list[Float[Tensor, "B heads _ E"]]:
        """Query, key and value of each head."""
        weight, bias = self.qkv.weight, self._joined_bias()
        if queries is None:
            joined = self.qkv(tokens) if self.q_bias is None else F.linear(tokens, weight, bias)
            parts = joined.chunk(3, dim=-1)  # gradients come back with a single copy
        else:
            width = queries.shape[-1]
            parts = (
                F.linear(queries, weight[:width], bias[:width]),
                *F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1),
            )
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def _joined_bias(self) -> Tensor:
        """Of queries, keys and values, one after the other; the keys' are zeros where they have none."""
        if self.q_bias is not None and self.v_bias is not None:
            return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.qkv.bias

    def attend(
        self,
        tokens: Float[Tensor, "B T D"],
        queries: Float[Tensor, "B Q D"],
        bias: Float[Tensor, "b heads Q T"] | None = None,
        index: Int[Tensor, "b Q T"] | None = None,
    ) -> Float[Tensor, "B heads Q T"]:
        """The softmaxed attention of `queries` alone; nothing is mixed for them. Arguments as for the call."""
        weight, offset, width = self.qkv.weight, self._joined_bias(), queries.shape[-1]
        query, key = (
            F.linear(given, weight[rows], offset[rows]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for given, rows in ((queries, slice(0, width)), (tokens, slice(width, 2 * width)))
        )
        if self.relative_position_bias_table is not None and index is not None:
            bias = relative_bias(self.relative_position_bias_table, index)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(dim=-1)


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
    """Pre-norm transformer block; the unit for sharding.

    Args:
        width: Width of a token.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over the width.
        drop_path: Rate of stochastic depth.
        bias: See `Attention`.
        layer_scale: First value of a learned scale of each channel of both branches; None: no scales.
        relative_rows: See `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        *,
        bias: AttentionBias = "qkv",
        layer_scale: float | None = None,
        relative_rows: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, bias, relative_rows)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.gamma_1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        need_weights: bool = False,
        wanted: Int[Tensor, "B Q"] | None = None,
        bias: Float[Tensor, "b heads Q T"] | None = None,
        index: Int[Tensor, "b Q T"] | None = None,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B heads Q T"] | None]:
        """New tokens (those at the places `wanted`, or all) and, if asked for, the attention weights.

        A last block of which only some tokens are read need not compute the others: they serve as keys and values.
        `bias` and `index` (see `Attention`) have a row for each token that is computed.
        """
        normed, queries = self.norm1(tokens), None
        if wanted is not None:
            tokens, queries = take(tokens, wanted), take(normed, wanted)
        branch, weights = self.attn(normed, need_weights, queries, bias, index)
        tokens = tokens + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(tokens))
        return tokens + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch), weights


def initialise(module: nn.Module) -> None:
    """MAE's initialisation of linear layers, layer norms and patch kernels; for `nn.Module.apply`.

    Source: the authors' `models_mae.py`: Xavier-uniform matrices, zero biases; the patch kernel is seen as a matrix
    and its bias keeps the convolution's default.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))  # a view: the kernel is filled in place


def initialise_beit(module: nn.Module) -> None:
    """BEiT's initialisation of linear layers and patch kernels, also of CAE's ViT-L; for `nn.Module.apply`.

    The output projections of its blocks are then scaled down, see `initialise_stack`.

    Source: the authors' `modeling_pretrain.py`: narrow normal matrices and kernels, zero biases.
    """
    if isinstance(module, nn.Linear):
        narrow_normal(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        _initialise_narrow_kernel(module)


def initialise_cae(module: nn.Module) -> None:
    """CAE's initialisation of linear layers and patch kernels for ViT-S and ViT-B; for `nn.Module.apply`.

    Source: the authors' `modeling_cae_helper.py`: Xavier-uniform matrices, a narrow normal kernel, zero biases.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        _initialise_narrow_kernel(module)


def initialise_mocov3(module: nn.Module) -> None:
    """MoCo v3's initialisation of linear layers and patch kernels; for `nn.Module.apply`.

    Source: the authors' `vits.py`: Xavier-uniform matrices, where queries, keys and values count as three, and zero
    biases, that of the patch kernel too.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):  # after its linear layers
        for part in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))
        if module.proj.bias is not None:
            nn.init.zeros_(module.proj.bias)


def initialise_normal(module: nn.Module) -> None:
    """Normal matrices and patch kernels of deviation 0.02, and zero biases; for `nn.Module.apply`. MaskFeat's.

    Source: the authors' SlowFast, whose cut at 2, a hundred deviations, is none.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.normal_(module.proj.weight, std=0.02)
        if module.proj.bias is not None:
            nn.init.zeros_(module.proj.bias)


def initialise_token(token: Tensor, scheme: Initialisation) -> None:
    """Class, register and mask tokens as their scheme has them."""
    if scheme in ("mae", "normal", "mocov3"):
        nn.init.normal_(token, std=1e-6 if scheme == "mocov3" else 0.02)
    else:
        narrow_normal(token)


def narrow_normal(tensor: Tensor) -> None:
    """Fill a parameter with a normal of deviation 0.02 that is cut at one deviation; what is left has 0.0108.

    Paper: Bao et al. 2022, arXiv:2106.08254, section 2.5; the authors' code, and CAE's.
    """
    within = math.erf(1 / math.sqrt(2))  # share of a normal within one deviation
    with torch.no_grad():  # by the inverse of the distribution: nothing is drawn twice, so it also runs without data
        tensor.uniform_(-within, within).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-0.02, 0.02)


@torch.no_grad()
def initialise_stack(module: nn.Module, blocks: Iterable[nn.Module], scheme: Initialisation) -> None:
    """Linear layers and patch kernels; with "beit" the last matrix of both branches of block l (from 1) over sqrt(2 l).

    Paper: Bao et al. 2022, arXiv:2106.08254, section 2.5; in CAE's code every stack counts its own blocks.
    """
    module.apply(SCHEMES[scheme])
    if scheme == "beit":
        for depth, block in enumerate(blocks, start=1):
            for name in ("attn.proj", "mlp.fc2"):
                last = block.get_submodule(name)
                assert isinstance(last, nn.Linear)
                last.weight.div_(math.sqrt(2.0 * depth))


SCHEMES: dict[Initialisation, Callable[[nn.Module], None]] = {
    "mae": initialise,
    "beit": initialise_beit,
    "cae": initialise_cae,
    "mocov3": initialise_mocov3,
    "normal": initialise_normal,
}


def _initialise_narrow_kernel(module: PatchEmbed) -> None:
    narrow_normal(module.proj.weight)
    if module.proj.bias is not None:
        nn.init.zeros_(module.proj.bias)


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
        position: "sincos" (a fixed table: sine-cosine, unless loaded weights bring their own), "sincos_rows_first" (the
            same with the row in the first half of the channels, as in CAE), "learned" or "none".
        relative_position: What attention adds for how far apart two patches are: "none", "shared" (one table for all
            blocks) or "blocks" (each block's own).
        attention_bias: What has a bias in attention: "qkv" queries, keys and values, "qv" queries and values.
        layer_scale: First value of a learned scale of each channel of both branches of a block; None: no scales.
        initialisation: Whose first values: "mae"; "beit", also of CAE's ViT-L; "cae", of its ViT-S and ViT-B;
            "mocov3"; "normal", MaskFeat's.
        drop_path: Rate of the last block; blocks before it have linearly less.
        mean: Mean of each channel, in the scale of the images.
        std: Deviation of each channel.

    Raises:
        ValueError: if sizes do not fit each other.

    Paper: Dosovitskiy et al. 2021, arXiv:2010.11929; He et al. 2022, arXiv:2111.06377, appendix A.1; Bao et al. 2022,
        arXiv:2106.08254, section 2.5 (relative positions, scales, no bias of keys).
    """

    mean: Tensor
    std: Tensor
    relative_index: Tensor | None

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
        position: Position = "sincos",
        relative_position: RelativePosition = "none",
        attention_bias: AttentionBias = "qkv",
        layer_scale: float | None = None,
        initialisation: Initialisation = "mae",
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
            relative_position=relative_position,
            attention_bias=attention_bias,
            layer_scale=layer_scale,
            initialisation=initialisation,
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
        self.pos_embed = (
            None
            if position == "none"
            else nn.Parameter(
                torch.empty(1, self.num_prefix + self.num_patches, width), requires_grad=position == "learned"
            )
        )
        rows = 0 if relative_position == "none" else num_relative_rows(self.grid, class_token)
        self.rel_pos_bias = RelativeBias(rows, heads) if relative_position == "shared" else None
        self.register_buffer(
            "relative_index", relative_index(self.grid, class_token) if rows else None, persistent=False
        )
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                mlp_ratio,
                rate,
                bias=attention_bias,
                layer_scale=layer_scale,
                relative_rows=rows if relative_position == "blocks" else 0,
            )
            for rate in rates
        )
        self.norm: nn.Module = nn.LayerNorm(width, eps=NORM_EPS)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw the first values, as `config` says."""
        scheme, position, table = self.config.initialisation, self.config.position, self.pos_embed
        initialise_stack(self, self.blocks, scheme)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                initialise_token(token, scheme)
        if table is None:
            return
        if position == "sincos":
            table.copy_(sincos_2d(self.width, self.grid, self.num_prefix))
        elif position == "sincos_rows_first":
            table.copy_(sincos_2d_rows_first(self.width, self.grid, self.num_prefix))
        elif scheme in ("mae", "mocov3", "normal"):
            nn.init.normal_(table, std=0.02)
        else:
            narrow_normal(table)

    def embed(
        self,
        images: Float[Tensor, "B C H W"],
        ids_keep: Int[Tensor, "B V"] | None = None,
        hidden: Hidden | None = None,
    ) -> Float[Tensor, "B V D"]:
        """Projected patches with their positions, before the first block.

        Raises:
            ValueError: if the images have another size or number of channels than the encoder, or patches are both
                left out and hidden.
        """
        expected = (self.in_chans, *self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"Encoder.images must be (B, {', '.join(map(str, expected))}), channels first; got "
                f"{tuple(images.shape)}. Resize the images, or build the encoder for this size and these channels."
            )
        patches = self.patch_embed(standardise(images, self.mean, self.std), ids_keep)
        if hidden is not None:
            if ids_keep is not None:
                raise ValueError(
                    "Encoder.hidden must be None where ids_keep is given; got both. Choose one of the two."
                )
            patches = torch.where(hidden.masked.unsqueeze(-1), hidden.mask_token, patches)
        if self.pos_embed is None:
            return patches
        position = self.pos_embed[0, self.num_prefix :]
        return patches + (position if ids_keep is None else F.embedding(ids_keep, position))

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        ids_keep: Int[Tensor, "B V"] | None = None,
        attention_layer: int | None = None,
        hidden: Hidden | None = None,
    ) -> Features:
        """Encode the patches `ids_keep` (all, if None); other patches are never touched.

        Args:
            images: Scaled, not normalised: the encoder subtracts its mean and divides by its deviation.
            ids_keep: Patches to encode.
            attention_layer: Also return the attention of this block (negative: from the last).
            hidden: Encode all patches, a mask token in the place of some; positions are added to it as to the others.
        """
        tokens, bias, index = self.enter(images, ids_keep, hidden)
        wanted = None if attention_layer is None else range(self.depth)[attention_layer]
        attention = None
        for number, block in enumerate(self.blocks):
            tokens, weights = block(tokens, need_weights=number == wanted, bias=bias, index=index)
            attention = attention if weights is None else weights
        tokens = self.norm(tokens)
        return Features(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :], attention)

    def each_block(
        self,
        images: Float[Tensor, "B C H W"],
        ids_keep: Int[Tensor, "B V"] | None = None,
        hidden: Hidden | None = None,
        need_attention: bool = False,
    ) -> Iterator[Features]:
        """What each block says, one after the other and before the final norm; with its attention if asked for."""
        tokens, bias, index = self.enter(images, ids_keep, hidden)
        for block in self.blocks:
            tokens, weights = block(tokens, need_weights=need_attention, bias=bias, index=index)
            yield Features(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :], weights)

    def enter(
        self,
        images: Float[Tensor, "B C H W"],
        ids_keep: Int[Tensor, "B V"] | None = None,
        hidden: Hidden | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "b heads T T"] | None, Int[Tensor, "b T T"] | None]:
        """What the first block gets: prefix tokens and patches with their positions, and what its attention adds.

        Returns: tokens; a bias that all blocks share, or None; the rows of the blocks' own tables, or None.
        """
        patches = self.embed(images, ids_keep, hidden)  # (B, V, D)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = patches
        if prefix:
            start = torch.cat(prefix, dim=1)
            if self.pos_embed is not None:
                start = start + self.pos_embed[:, : self.num_prefix]
            tokens = torch.cat([start.expand(len(images), -1, -1), patches], dim=1)  # (B, P + V, D)
        index = self._pairs(ids_keep)
        if self.rel_pos_bias is not None:
            return tokens, self.rel_pos_bias(index), None  # one table: looked up once
        return tokens, None, index

    def _pairs(self, ids_keep: Int[Tensor, "B V"] | None) -> Int[Tensor, "b T T"] | None:
        """For each pair of tokens, its row in a table of relative positions; one matrix where all images have all."""
        if self.relative_index is None:
            return None
        if ids_keep is None:
            return self.relative_index.unsqueeze(0)
        return index_of(self.relative_index, ids_keep, self.num_prefix)


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
        position: A fixed table (sine-cosine, unless loaded weights bring their own; columns first as in MAE, or rows
            first as in CAE), a learned one, or none.
        relative_position: Learned biases for how far apart two patches are: none, shared by the blocks, or each
            block's own.
        attention_bias: Biases of queries, keys and values, or of queries and values alone.
        layer_scale: First value of the learned scales of a block's branches; None: no scales.
        initialisation: Whose first values.
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
    position: Position = "sincos"
    relative_position: RelativePosition = "none"
    attention_bias: AttentionBias = "qkv"
    layer_scale: float | None = None
    initialisation: Initialisation = "mae"
    drop_path: float = 0.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        patch_grid(self.image_size, self.patch_size)
        for name in ("patch_size", "in_chans", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"EncoderConfig.{name} must be at least 1; got {getattr(self, name)}.")
        if self.relative_position != "none" and self.registers:
            raise ValueError(
                f"EncoderConfig.registers must be 0 with relative positions, which know no place of registers; got "
                f"{self.registers}. Leave out one of the two."
            )
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(
                f"EncoderConfig.layer_scale must be above 0; got {self.layer_scale}. Leave it out for no scales."
            )
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
        """The encoder, with its first values drawn from torch's global generator."""
        return Encoder(**asdict(self))


def resize_encoder_weights(
    weights: dict[str, Tensor], config: EncoderConfig, image_size: tuple[int, int]
) -> tuple[dict[str, Tensor], EncoderConfig]:
    """Weights and config of the same encoder for images of another size; its tables of positions are resampled."""
    resized = replace(config, image_size=image_size)
    tables = {}
    for name, table in weights.items():
        if name == "pos_embed":
            tables[name] = resample(table, config.grid, resized.grid, config.num_prefix)
        elif name.endswith("relative_position_bias_table"):
            tables[name] = resize_relative_table(table, config.grid, resized.grid)
    return {**weights, **tables}, resized


def give_blocks_their_tables(
    weights: dict[str, Tensor], config: EncoderConfig
) -> tuple[dict[str, Tensor], EncoderConfig]:
    """Weights and config of the same encoder, the shared table of relative positions copied into every block.

    Source: BEiT's fine-tuning, `run_class_finetuning.py`.

    Raises:
        ValueError: if the encoder has no shared table.
    """
    shared = "rel_pos_bias.relative_position_bias_table"
    if config.relative_position != "shared":
        raise ValueError(
            f"give_blocks_their_tables.config must have relative_position shared; got {config.relative_position}. "
            f"There is nothing to copy."
        )
    rest = {name: tensor for name, tensor in weights.items() if name != shared}
    tables = {
        f"blocks.{block}.attn.relative_position_bias_table": weights[shared].clone() for block in range(config.depth)
    }
    return rest | tables, replace(config, relative_position="blocks")


# Width, depth and heads under timm's names; "micro" is ours, for images of CIFAR's size on a CPU.
ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "micro": {"width": 96, "depth": 4, "heads": 3},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
