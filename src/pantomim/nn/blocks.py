"""What transformers are made of: patch projection, stochastic depth, and the pre-norm block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.nn.attention import NOWHERE, Attention, AttentionBias, Places
from pantomim.nn.mlp import PLAIN_MLP, Mlp, MlpConfig
from pantomim.nn.tokens import take

NORM_EPS = 1e-6  # every layer norm of the MAE family; torch's default is 1e-5


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
        rows, columns = height // size, width // size
        cells = images.reshape(batch, channels, rows, size, columns, size)
        # Channels first within a patch, as in the kernel; `patchify` has them last, as MAE's targets do.
        pixels = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * size * size)
        if ids_keep is not None:
            pixels = take(pixels, ids_keep)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for some images and scales the others by 1 / (1 - rate).

    Drawn from torch's global generator; within `drawing_for` for the global batch, of which `rows` are here.
    """

    axes = 1  # that have draws of their own: images
    total: int = 0  # images of the global batch
    rows: Int[Tensor, " B"] | None = None  # which of them these are; None: all

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Identity in evaluation mode and at rate 0."""
        if self.rate == 0.0 or not self.training:
            return branch
        shape = branch.shape[: self.axes]
        if self.rows is None:
            stays = branch.new_empty(shape).bernoulli_(1 - self.rate)
        else:  # a method may have its images several times, one copy after the other
            every = (len(branch) // len(self.rows), self.total, *shape[1:])
            stays = branch.new_empty(every).bernoulli_(1 - self.rate)[:, self.rows].flatten(0, 1)
        return branch * stays.div_(1 - self.rate).view(*shape, *(1,) * (branch.dim() - self.axes))


class DropChannels(DropPath):
    """Drops channels of maps as `nn.Dropout2d` does, drawn as stochastic depth is."""

    axes = 2


@contextmanager
def drawing_for(parts: Sequence[DropPath], batch: Batch) -> Iterator[None]:
    """Each of these parts draws for the global batch of which this batch is some rows, so that all parts of it agree.

    Whoever sees other rows must start from the same state of torch's global generator.
    """
    rows, total = None, batch.total
    if len(batch) < total:
        rows = torch.arange(batch.start, batch.start + len(batch), device=batch.images.device)
    for part in parts:
        part.total, part.rows = total, rows
    try:
        yield
    finally:
        for part in parts:
            part.rows = None


def drop_path_rates(last: float, depth: int) -> list[float]:
    """The rate of each block: from 0, rising evenly to that of the last."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def new_scale(width: int, initial: float | None) -> nn.Parameter | None:
    """A learned factor of each channel of a branch; None: no factors. CaiT's, arXiv:2103.17239."""
    return None if initial is None else nn.Parameter(torch.full((width,), initial))


def scaled(branch: Float[Tensor, "B T D"], gamma: nn.Parameter | None) -> Float[Tensor, "B T D"]:
    """The branch times its layer scale, where there is one."""
    return branch if gamma is None else gamma * branch


class StreamBlock(nn.Module):
    """A block of a residual stream, which stays in bfloat16 under autocast if asked for; norms add up in float32."""

    in_bfloat16 = False  # see `stream_in_bfloat16`

    def keep(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The stream, in the precision that it is kept in."""
        half = self.in_bfloat16 and torch.is_autocast_enabled(tokens.device.type)
        return tokens.to(torch.bfloat16) if half else tokens


def stream_in_bfloat16(module: nn.Module) -> None:
    """Keep the residual stream in bfloat16 under autocast in all blocks that are trained; teachers stay as they are."""
    for part in module.modules():
        if isinstance(part, StreamBlock):
            part.in_bfloat16 = any(parameter.requires_grad for parameter in part.parameters())


class Block(StreamBlock):
    """Pre-norm transformer block; the unit for sharding. Arguments as of `Attention` and `EncoderConfig`."""

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
        mlp: MlpConfig = PLAIN_MLP,
        norm_eps: float = NORM_EPS,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, bias, relative_rows, norm_eps if qk_norm else None)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio), mlp, norm_eps)
        self.gamma_1, self.gamma_2 = new_scale(width, layer_scale), new_scale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        need_weights: bool = False,
        only: Int[Tensor, "B Q"] | None = None,
        places: Places = NOWHERE,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B heads Q T"] | None]:
        """New tokens (all, or `only` some) and, if asked for, the attention.

        A last block of which only some tokens are read need not compute the others: they serve as keys and values.
        """
        tokens = self.keep(tokens)
        branch, weights = self.attn(self.norm1(tokens), need_weights, only, places)
        tokens = tokens if only is None else take(tokens, only)
        tokens = self.keep(tokens + self.drop_path(scaled(branch, self.gamma_1)))
        return self.keep(tokens + self.drop_path(scaled(self.mlp(self.norm2(tokens)), self.gamma_2))), weights
