"""The MLP of a block: two linear layers with an activation between them, or three with a gate (SwiGLU)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]


def quick_gelu(values: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
    """OpenAI's approximation of GELU, as in CLIP's `clip/model.py`."""
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


@frozen
class MlpConfig:
    """What lies between the input and the output of a block's MLP."""

    activation: Activation = "gelu"  # gelu (exact), gelu_tanh (SigLIP), quick_gelu (CLIP) or silu
    gated: bool = False  # A third linear layer, whose activated output multiplies the hidden values: SwiGLU with silu
    norm: bool = False  # A layer norm of the hidden values, as in EVA-02's base and large


PLAIN_MLP = MlpConfig()


class Mlp(nn.Module):
    """Linear layer, activation, perhaps a gate and a norm, linear layer; names as in timm's `Mlp` and `SwiGLU`.

    Paper: Shazeer 2020, arXiv:2002.05202 (the gate); Fang et al. 2023, arXiv:2303.11331, section 2.1 (its norm).
    """

    def __init__(self, width: int, hidden: int, config: MlpConfig = PLAIN_MLP, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[config.activation], config.gated
        if config.gated:
            self.fc1_g, self.fc1_x = nn.Linear(width, hidden), nn.Linear(width, hidden)
        else:
            self.fc1 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps) if config.norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Token by token."""
        if self.gated:
            hidden = self.activation(self.fc1_g(tokens)) * self.fc1_x(tokens)
        else:
            hidden = self.activation(self.fc1(tokens))
        return self.fc2(self.norm(hidden))
