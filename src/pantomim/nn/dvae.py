"""The networks of a discrete variational auto-encoder: image to scores of codes, codes to image.

Parameter names are those of the published DALL-E networks (`w` and `b`, not `weight` and `bias`).

Paper: Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, arXiv:2102.12092, section 2.1, appendix A; sizes as in
the authors' `dall_e/encoder.py` and `decoder.py`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, AtLeastTwo
from pantomim.core.scales import BYTES, Scale
from pantomim.nn.tokens import patch_grid, take

MARGIN = 0.1  # distance of mapped pixels from 0 and 1, where the density has no mass (appendix A.3)


def map_pixels(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Pixels in [0, 1] into [0.1, 0.9]: what the encoder takes and the density describes (appendix A.3)."""
    return (1 - 2 * MARGIN) * images + MARGIN


def unmap_pixels(mapped: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The inverse of `map_pixels`, cut to [0, 1]."""
    return ((mapped - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)


class Conv2d(nn.Module):
    """A convolution that keeps the image's size; if `exact`, in at least float32 whatever autocast says.

    Paper: weights have std 1/sqrt(in_chans * kernel^2), biases are 0 (the authors' `dall_e/utils.py`).
    """

    def __init__(self, in_chans: int, out_chans: int, kernel: int, *, exact: bool = False) -> None:
        super().__init__()
        self.padding, self.exact = (kernel - 1) // 2, exact
        self.w = nn.Parameter(torch.empty(out_chans, in_chans, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(out_chans))
        nn.init.normal_(self.w, std=1 / math.sqrt(in_chans * kernel**2))

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Convolve."""
        if not self.exact:
            return F.conv2d(maps, self.w, self.b, padding=self.padding)
        with torch.autocast(maps.device.type, enabled=False):
            return F.conv2d(at_least_float32(maps), self.w, self.b, padding=self.padding)


class ResidualBlock(nn.Module):
    """Skip path plus a small multiple (`gain`) of four convolutions, each behind a ReLU."""

    def __init__(self, in_chans: int, out_chans: int, kernels: tuple[int, int, int, int], gain: float) -> None:
        super().__init__()
        self.gain, hidden = gain, out_chans // 4
        self.id_path = Conv2d(in_chans, out_chans, 1) if in_chans != out_chans else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        widths = (in_chans, hidden, hidden, hidden, out_chans)
        for number, (before, after, kernel) in enumerate(zip(widths, widths[1:], kernels, strict=False), 1):
            layers |= {f"relu_{number}": nn.ReLU(), f"conv_{number}": Conv2d(before, after, kernel)}
        self.res_path = nn.Sequential(layers)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Both paths together."""
        return self.id_path(maps) + self.gain * self.res_path(maps)


@frozen
class DVAESizes:
    """The sizes of encoder and decoder; the default is the published DALL-E tokenizer.

    Deviation: strides other than 8, widths under 64 and other numbers of channels are ours.
    """

    in_chans: AtLeastOne = 3  # Channels of the images
    vocabulary: AtLeastTwo = 8192  # Number of codes
    width: int = 256  # Channels of the first group of the encoder and the last of the decoder; each group doubles them
    # Channels into which the decoder projects the codes; the weight of that projection is the codebook
    code_width: AtLeastOne = 128
    blocks: AtLeastOne = 2  # Residual blocks of each group
    stride: int = 8  # Pixels per code, along each side: a power of two. There is one group more than halvings (8: four)

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4:
            raise ValueError(
                f"DVAESizes.width must be a positive multiple of 4, as blocks are a quarter as wide inside; "
                f"got {self.width}."
            )
        if self.stride < 2 or self.stride & (self.stride - 1):
            raise ValueError(
                f"DVAESizes.stride must be a power of two from 2 on; got {self.stride}. The published tokenizer has 8."
            )

    @property
    def groups(self) -> int:
        """Groups of residual blocks; between two of them the side halves or doubles."""
        return self.stride.bit_length()

    @property
    def gain(self) -> float:
        """Factor of every residual path."""
        return 1 / (self.groups * self.blocks) ** 2


class DVAEEncoder(nn.Module):
    """Mapped pixels to a score of each code in each cell."""

    scale: Scale | None = BYTES  # of the images that its weights were trained on

    def __init__(self, sizes: DVAESizes) -> None:
        super().__init__()
        self.sizes = sizes
        widths = [sizes.width * 2**group for group in range(sizes.groups)]
        first = Conv2d(sizes.in_chans, sizes.width, 7)
        self.blocks = _stack(first, widths, sizes, (3, 3, 3, 1), "pool", partial(nn.MaxPool2d, 2))
        self.blocks.add_module("output", _output(widths[-1], sizes.vocabulary, exact=True))

    @property
    def width(self) -> int:
        """Channels of the last group."""
        return self.sizes.width * 2 ** (self.sizes.groups - 1)

    def forward(
        self, mapped: Float[Tensor, "B C H W"], only: Int[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B K h w"]:
        """Logits of the codes; those of `only` some cells as one column, (B, K, M, 1)."""
        maps = self.features(mapped)
        if only is not None:  # the last layer takes each cell for itself
            maps = take(maps.flatten(2).mT, only).mT.unsqueeze(-1)
        return self.blocks[-1](maps)

    def features(self, mapped: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The last group's output in each cell, before the codes."""
        if mapped.shape[1] != self.sizes.in_chans:
            raise ValueError(
                f"DVAEEncoder.mapped must have {self.sizes.in_chans} channels; got {mapped.shape[1]}. "
                f"Use a tokenizer trained on such images: `pantomim tokenizer train`."
            )
        code_grid((mapped.shape[2], mapped.shape[3]), self.sizes.stride)
        for part in list(self.blocks)[:-1]:
            mapped = part(mapped)
        return mapped


class DVAEDecoder(nn.Module):
    """Codes, one-hot or soft, to location and log-scale of each mapped pixel's logit-Laplace density."""

    def __init__(self, sizes: DVAESizes) -> None:
        super().__init__()
        self.sizes = sizes
        widths = [sizes.width * 2**group for group in reversed(range(sizes.groups))]
        first = Conv2d(sizes.vocabulary, sizes.code_width, 1, exact=True)
        self.blocks = _stack(first, widths, sizes, (1, 3, 3, 3), "upsample", partial(nn.Upsample, scale_factor=2))
        self.blocks.add_module("output", _output(widths[-1], 2 * sizes.in_chans))

    def forward(self, codes: Float[Tensor, "B K h w"]) -> Float[Tensor, "B S H W"]:
        """(B, 2 C, H, W): C channels of locations, then C of log-scales."""
        return self.blocks(codes)


class DVAENetworks(nn.Module):
    """Encoder and decoder that belong together."""

    def __init__(self, sizes: DVAESizes) -> None:
        super().__init__()
        self.sizes, self.encoder, self.decoder = sizes, DVAEEncoder(sizes), DVAEDecoder(sizes)


def code_grid(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of codes."""
    if any(side < stride or side % stride for side in image_size):
        raise ValueError(
            f"image_size must be a multiple of the tokenizer's stride, {stride}; got {image_size[0]}x{image_size[1]}. "
            f"Give another image_size, to which images are resized, or use a tokenizer with a smaller stride."
        )
    return patch_grid(image_size, stride)


def _stack(
    first: Conv2d,
    widths: list[int],
    sizes: DVAESizes,
    kernels: tuple[int, int, int, int],
    name: str,
    between: Callable[[], nn.Module],
) -> nn.Sequential:
    """Groups of residual blocks behind a convolution; `between` two groups the side changes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(input=first)
    in_chans = len(first.w)
    for group, out_chans in enumerate(widths, 1):
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(1, sizes.blocks + 1):
            blocks[f"block_{number}"] = ResidualBlock(in_chans, out_chans, kernels, sizes.gain)
            in_chans = out_chans
        if group < len(widths):
            blocks[name] = between()
        layers[f"group_{group}"] = nn.Sequential(blocks)
    return nn.Sequential(layers)


def _output(in_chans: int, out_chans: int, *, exact: bool = False) -> nn.Sequential:
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(in_chans, out_chans, 1, exact=exact)))
