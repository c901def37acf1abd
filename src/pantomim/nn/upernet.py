"""UPerNet's heads on four maps of rising stride; names of parameters as in mmsegmentation.

Paper: Xiao et al. 2018, arXiv:1807.10221; as in mmsegmentation's `uper_head.py`, `psp_head.py` and `fcn_head.py`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.nn.blocks import DropChannels
from pantomim.nn.tokens import enlarge


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and ReLU; mmcv's `ConvModule`, with its initial weights."""

    def __init__(self, width: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C h w"]:
        """At the same size."""
        return F.relu(self.bn(self.conv(maps)))


def score_layer(width: int, num_classes: int) -> nn.Conv2d:
    """The last layer of a head: logits of each place."""
    layer = nn.Conv2d(width, num_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest map, a path down to the finest, all of them joined, and logits.

    In training the batch norm of the smallest pooled map, one cell an image, needs two images.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        num_classes: int,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNorm(width, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvNorm(width + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(width, channels, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(3))
        self.fpn_bottleneck = ConvNorm(4 * channels, channels, 3)
        self.dropout = DropChannels(dropout)
        self.conv_seg = score_layer(channels, num_classes)

    def forward(self, levels: Sequence[Float[Tensor, "B D _ _"]]) -> Float[Tensor, "B K h w"]:
        """Logits at the size of the finest of the four maps, which come first."""
        *fine, coarse = levels
        pooled = [enlarge(pool(coarse), coarse.shape[2:]) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([coarse, *pooled], dim=1))
        laterals: list[Tensor] = []
        below = top
        for conv, level in zip(reversed(self.lateral_convs), reversed(fine), strict=True):  # from coarse to fine
            below = conv(level) + enlarge(below, level.shape[2:])
            laterals.insert(0, below)
        joined = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=True)] + [top]
        joined = [enlarge(maps, fine[0].shape[2:]) for maps in joined]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(joined, dim=1))))


class FCNHead(nn.Module):
    """One convolution and logits: the auxiliary head, which reads the third map in training alone."""

    def __init__(self, width: int, channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvNorm(width, channels, 3))
        self.dropout = DropChannels(dropout)
        self.conv_seg = score_layer(channels, num_classes)

    def forward(self, level: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K h w"]:
        """Logits at the size of the map."""
        return self.conv_seg(self.dropout(self.convs(level)))
