"""First values of what stands behind an encoder, given the way its encoder has them."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from pantomim.nn.vit import Initialisation, initialise, initialise_beit, initialise_cae

FUNCTIONS = {"mae": initialise, "beit": initialise_beit, "cae": initialise_cae}


@torch.no_grad()
def initialise_stack(module: nn.Module, blocks: Iterable[nn.Module], initialisation: Initialisation) -> None:
    """Linear layers of a module; with "beit" both branches of its block l (from 1) end divided by sqrt(2 l).

    Source: the authors' `modeling_cae.py`, where every stack counts its own blocks.
    """
    module.apply(FUNCTIONS[initialisation])
    if initialisation == "beit":
        for depth, block in enumerate(blocks, start=1):
            for name in ("attn.proj", "mlp.fc2"):
                last = block.get_submodule(name)
                assert isinstance(last, nn.Linear)
                last.weight.div_(math.sqrt(2.0 * depth))
