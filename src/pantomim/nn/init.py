"""Initial weights as the papers' code draws them. The order of draws decides every weight of a seeded run."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pantomim.nn.attention import Attention
from pantomim.nn.blocks import PatchEmbed

Initialisation = Literal["mae", "beit", "cae", "mocov3", "normal"]
Fill = Callable[[Tensor], object]


@torch.no_grad()
def narrow_normal(tensor: Tensor) -> None:
    """Fill a parameter with a normal of std 0.02 that is cut at one std; what is left has 0.0108.

    Paper: Bao et al. 2022, arXiv:2106.08254, section 2.5; the authors' code, and CAE's.
    """
    within = math.erf(1 / math.sqrt(2))  # share of a normal within one std
    # By the inverse of the distribution: nothing is drawn twice, so it also runs on fake tensors.
    tensor.uniform_(-within, within).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-0.02, 0.02)


normal: Fill = partial(nn.init.normal_, std=0.02)
xavier: Fill = nn.init.xavier_uniform_


class Scheme(NamedTuple):
    """What fills each kind of weight."""

    matrix: Fill  # linear layers; their biases are zero
    kernel: Fill  # patch projection, seen as a matrix
    token: Fill  # class, register and mask tokens
    table: Fill  # learned positions
    kernel_bias: bool = True  # the kernel's bias is zero, rather than the convolution's default


SCHEMES: dict[Initialisation, Scheme] = {
    "mae": Scheme(xavier, xavier, normal, normal, kernel_bias=False),  # the authors' models_mae.py
    "beit": Scheme(narrow_normal, narrow_normal, narrow_normal, narrow_normal),  # modeling_pretrain.py; CAE's ViT-L
    "cae": Scheme(xavier, narrow_normal, narrow_normal, narrow_normal),  # modeling_cae_helper.py; ViT-S and ViT-B
    "mocov3": Scheme(xavier, xavier, partial(nn.init.normal_, std=1e-6), normal),  # vits.py
    "normal": Scheme(normal, normal, normal, normal),  # MaskFeat's SlowFast, whose cut at 2, a hundred stds, is none
}


@torch.no_grad()
def initialise(module: nn.Module, scheme: Initialisation, blocks: Iterable[nn.Module] = ()) -> None:
    """Draw linear layers and patch kernels of a module; tokens and tables are left to `SCHEMES`.

    With "beit" the last matrix of both branches of the l-th of `blocks` (from 1) is divided by sqrt(2 l).

    Paper: Bao et al. 2022, arXiv:2106.08254, section 2.5; in CAE's code every stack counts its own blocks.
    """
    rule = SCHEMES[scheme]

    def fill(part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            rule.matrix(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, Attention) and scheme == "mocov3":
            # Queries, keys and values count as three matrices; their joint one was drawn already, as a child.
            for third in part.qkv.weight.chunk(3):
                rule.matrix(third)
        elif isinstance(part, PatchEmbed):
            rule.kernel(part.proj.weight.flatten(1))  # a view: the kernel is filled in place
            if rule.kernel_bias and part.proj.bias is not None:
                nn.init.zeros_(part.proj.bias)

    module.apply(fill)
    if scheme == "beit":
        for depth, block in enumerate(blocks, start=1):
            for name in ("attn.proj", "mlp.fc2"):
                last = block.get_submodule(name)
                assert isinstance(last, nn.Linear)
                last.weight.div_(math.sqrt(2.0 * depth))
