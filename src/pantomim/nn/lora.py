"""LoRA: linear layers that stay as they are, each with a learned update of low rank.

    output = W x + b + (alpha / rank) B A x,   B is zero at first

Paper: Hu et al. 2021, arXiv:2106.09685, section 4.1; the initial A is that of the authors' `loralib`.
Deviation: queries, keys and values are one layer here; all three are adapted, and share A.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LORA = ("lora_a", "lora_b")  # the names of what is learned


class LoRALinear(nn.Linear):
    """A linear layer, whose weight and bias are taken over, with its update."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.factor = linear.in_features, linear.out_features, alpha / rank
        self.weight = linear.weight
        self.register_parameter("bias", linear._parameters["bias"])
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, tokens: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The layer's output with its update."""
        return super().forward(tokens) + self.update(tokens)

    def update(self, tokens: Float[Tensor, "*B I"], outputs: slice = slice(None)) -> Float[Tensor, "*B _"]:
        """What is added to some of the outputs."""
        return self.factor * F.linear(F.linear(tokens, self.lora_a), self.lora_b[outputs])

    def merged(self) -> Float[Tensor, "O I"]:
        """The weight of a plain layer with the same output."""
        return self.weight + self.factor * (self.lora_b @ self.lora_a)


def add_lora(part: nn.Module, rank: int, alpha: float) -> None:
    """Give every linear layer that a part owns an update, in place."""
    for name, layer in list(part.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(part, name, LoRALinear(layer, rank, alpha))


def merged_parameters(module: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """The parameters that a module without LoRA has for the same output, in its order; and whether they are trained."""
    layers = {id(part.weight): part for part in module.modules() if isinstance(part, LoRALinear)}
    for name, parameter in module.named_parameters():
        if id(parameter) in layers:
            yield layers[id(parameter)].merged(), True
        elif not name.endswith(LORA):
            yield parameter, parameter.requires_grad


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Put plain layers of the same output in the place of those with an update."""
    for owner in list(module.modules()):
        for name, part in list(owner.named_children()):
            if isinstance(part, LoRALinear):
                plain = nn.Linear(part.in_features, part.out_features, device="meta")  # draws no initial weights
                plain.weight = nn.Parameter(part.merged())
                plain.register_parameter("bias", part._parameters["bias"])
                setattr(owner, name, plain)
