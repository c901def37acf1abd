"""A plain ViT that segments: taps of its blocks, maps made of them, and a head that gives every pixel a class.

Source: the segmentation code of BEiT, CAE and dBOT (mmsegmentation 0.11) and of ColorMAE (1.x), which agree.
"""

import copy
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import KIND, frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, NotNegative, ShareBelowOne
from pantomim.nn.pyramid import Pyramid, tapped_blocks
from pantomim.nn.tokens import as_map, enlarge
from pantomim.nn.upernet import FCNHead, UPerHead, score_layer
from pantomim.nn.vit import Encoder, Features
from pantomim.nn.windows import sliding_logits

AUXILIARY_LEVEL = 2  # of the pyramid: stride 16
MAX_LOGITS = 2**27  # at the size of the masks, held at once: 512 MiB


class HeadParts(NamedTuple):
    """What stands on an encoder: the blocks that are read, a neck that makes maps of them, and heads."""

    taps: tuple[int, ...]  # from 0; the last block is among them
    neck: nn.Module  # features of each tap to a list of maps
    head: nn.Module  # the maps to logits
    auxiliary: nn.Module | None = None  # one of the maps to logits, for the loss alone
    auxiliary_weight: float = 0.0


@frozen
class LinearHeadConfig:
    """Logits of each patch from its token after the final norm, by one linear layer."""

    kind: Literal["linear"] = "linear"

    keeps_norm: ClassVar[bool] = True

    def build(self, encoder: Encoder, num_classes: int) -> HeadParts:
        """Fresh, with initial weights drawn from torch's global generator."""
        return HeadParts((encoder.depth - 1,), _Maps(encoder.grid), LastMapHead(encoder.width, num_classes))


@frozen
class UPerNetConfig:
    """The pyramid with UPerNet's head, and an auxiliary head in training; the taps have no norm."""

    kind: Literal["upernet"] = "upernet"
    channels: AtLeastOne | None = None  # Width of the head; None: the encoder's, as in the papers
    pool_scales: tuple[AtLeastOne, ...] = (1, 2, 3, 6)  # Sides of the grids that the coarsest map is pooled to
    auxiliary_channels: AtLeastOne = 256
    auxiliary_weight: NotNegative = 0.4  # Of the auxiliary head's loss; 0: there is no such head
    dropout: ShareBelowOne = 0.1  # Share of channels that are dropped before the logits of both heads

    keeps_norm: ClassVar[bool] = False

    def build(self, encoder: Encoder, num_classes: int) -> HeadParts:
        """Fresh, with initial weights drawn from torch's global generator."""
        width = encoder.width
        neck = Pyramid(width, encoder.patch_size, encoder.grid)
        head = UPerHead(width, self.channels or width, num_classes, self.pool_scales, self.dropout)
        auxiliary = (
            FCNHead(width, self.auxiliary_channels, num_classes, self.dropout) if self.auxiliary_weight else None
        )
        return HeadParts(tapped_blocks(encoder.depth), neck, head, auxiliary, self.auxiliary_weight)


@frozen
class DPTConfig:
    """DPT's decoder, which also reads the class token, and a linear layer; the taps have no norm.

    Paper: Ranftl et al. 2021, arXiv:2103.13413; the decoder is that of segmentation_models_pytorch.
    """

    kind: Literal["dpt"] = "dpt"
    channels: AtLeastOne = 256  # Width of the decoder where its maps are joined

    keeps_norm: ClassVar[bool] = False

    def build(self, encoder: Encoder, num_classes: int) -> HeadParts:
        """Fresh, with initial weights drawn from torch's global generator."""
        return HeadParts(
            tapped_blocks(encoder.depth), _DPT(encoder, self.channels), LastMapHead(self.channels, num_classes)
        )


HeadConfig = Annotated[LinearHeadConfig | UPerNetConfig | DPTConfig, KIND]  # the only list


class Segmenter(nn.Module):
    """The encoder with neck and heads, as it is fine-tuned; images have the encoder's size.

    The encoder is taken over, not copied; its final norm is dropped unless the head reads normed tokens.
    """

    def __init__(self, encoder: Encoder, num_classes: int, head: HeadConfig) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = encoder
        self.taps, self.neck, self.head, self.auxiliary, self.auxiliary_weight = head.build(encoder, num_classes)
        if not head.keeps_norm:
            encoder.norm = nn.Identity()

    def tap(self, images: Float[Tensor, "B C H W"]) -> list[Features]:
        """Tokens of the tapped blocks, through the final norm where there is one."""
        norm, blocks = self.encoder.norm, enumerate(self.encoder.each_block(images))
        return [Features(norm(each.prefix), norm(each.patches)) for block, each in blocks if block in self.taps]

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """Logits at the resolution of the head."""
        return self.head(self.neck(self.tap(images)))

    def plain_encoder(self, norm: Float[Tensor, "2 D"]) -> Encoder:
        """A copy of the encoder alone; where the head dropped the final norm, with one of this weight and bias."""
        encoder = copy.deepcopy(self.encoder)
        if isinstance(encoder.norm, nn.Identity) and encoder.config.norms.final:
            encoder.norm = nn.LayerNorm(encoder.width, eps=encoder.config.norms.eps).to(encoder.mean)
            encoder.norm.load_state_dict({"weight": norm[0], "bias": norm[1]})
        return encoder


def pixel_loss(
    logits: Float[Tensor, "B K h w"], labels: Int[Tensor, "B H W"], ignore: int = 255
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy at the labels' size: the sum over pixels that count, divided by *all* pixels; and the accuracy.

    Source: mmsegmentation's `cross_entropy_loss.py` with `avg_non_ignore` off, as in every recipe; where much is
        ignored, the loss is smaller than torch's mean. The accuracy is that of pixels that count.
    """
    scores, counted = enlarge(at_least_float32(logits), labels.shape[1:]), labels != ignore
    loss = F.cross_entropy(scores, labels, ignore_index=ignore, reduction="sum") / labels.numel()
    hits = ((scores.argmax(dim=1) == labels) & counted).sum()
    return loss, hits.to(scores.dtype) / counted.sum().clamp(min=1)


@torch.no_grad()
def segmented(
    model: Segmenter, images: Float[Tensor, "B C H W"], size: Sequence[int], stride: float
) -> Int[Tensor, "B h w"]:
    """The class number of every pixel of whole images, at another size than theirs: that of their masks.

    By windows of the encoder's size, `stride` of it apart. As many classes are enlarged at once as memory allows.
    """
    crop = model.encoder.image_size
    strides = (max(1, int(crop[0] * stride)), max(1, int(crop[1] * stride)))
    logits = sliding_logits(model, images, model.num_classes, crop, strides, model.encoder.mean.flatten())
    first, *others = logits.split(step := max(1, MAX_LOGITS // (len(images) * math.prod(size))), dim=1)
    best, numbers = enlarge(first, size).max(dim=1)
    for place, part in enumerate(others, 1):
        found, places = enlarge(part, size).max(dim=1)
        numbers = torch.where(found > best, places + place * step, numbers)
        best = torch.maximum(best, found)
    return numbers


class LastMapHead(nn.Module):
    """Logits of each place of the last map."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = score_layer(width, num_classes)

    def forward(self, maps: list[Float[Tensor, "B D h w"]]) -> Float[Tensor, "B K h w"]:
        """At the size of the map."""
        return self.conv_seg(maps[-1])


class _Maps(nn.Module):
    """The taps as they are, at their places."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, taps: list[Features]) -> list[Float[Tensor, "B D h w"]]:
        return [as_map(tap.patches, self.grid) for tap in taps]


class _DPT(nn.Module):
    """One map of half the images' resolution, of four taps and their class tokens."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
        except ImportError as error:
            raise ValueError(
                "DPTConfig must have segmentation-models-pytorch, which is not installed. Run "
                "`pip install 'pantomim[dpt]'`, or choose another head."
            ) from error
        stride = 2 ** round(math.log2(encoder.patch_size))  # of 14 as of 16: maps must fit on each other
        cells = max(32 // stride, 1)
        if any(side % cells for side in encoder.grid):
            raise ValueError(
                f"DPTConfig must have an encoder whose rows and columns of patches are multiples of {cells}; got "
                f"{encoder.grid[0]} x {encoder.grid[1]}. Take images of another size, or another head."
            )
        self.grid, self.reads_class = encoder.grid, encoder.config.class_token
        self.decoder = DPTDecoder(
            encoder_out_channels=[encoder.width] * 4,
            encoder_output_strides=[stride] * 4,
            encoder_has_prefix_tokens=self.reads_class,
            intermediate_channels=[channels, 2 * channels, 4 * channels, 4 * channels],
            fusion_channels=channels,
        )

    def forward(self, taps: list[Features]) -> list[Float[Tensor, "B D h w"]]:
        prefix = [tap.prefix if self.reads_class else None for tap in taps]
        return [self.decoder([as_map(tap.patches, self.grid) for tap in taps], prefix)]
