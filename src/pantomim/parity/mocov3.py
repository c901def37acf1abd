"""MoCo v3: a run of the authors' `main_moco.py` through our engine. Official: facebookresearch/moco-v3."""

import torch
from torch import Tensor, nn

from pantomim.methods.mocov3 import MoCoV3Config
from pantomim.nn.momentum import Momentum
from pantomim.nn.projector import BATCH_NORM_EPS
from pantomim.parity.item import Computed, Item
from pantomim.parity.networks import encoder_config
from pantomim.parity.trajectory import Run

PARTS = {  # ours and the authors'
    "encoder": "base_encoder.", "projector": "base_encoder.head.", "predictor_head": "predictor.",
    "teacher_encoder": "momentum_encoder.", "teacher_projector": "momentum_encoder.head.",
}  # fmt: skip


def trajectory_mocov3(item: Item) -> Computed:
    """Two views of each image, momentum encoder, batch norm in the heads."""
    config, total = item.config, item.config["steps"]
    encoder = encoder_config(item, position="sincos_rows_first", initialisation="mocov3")
    momentum = Momentum(config["momentum"], 1.0 if config["momentum_cosine"] else None)
    stated = {name: config[name] for name in ("hidden", "dim", "temperature", "freeze_patches")}
    method = MoCoV3Config(encoder=encoder, momentum=momentum, **stated)
    model = method.build(total)
    teacher = {name: t for name, t in model.state_dict().items() if name.startswith("teacher_") or "running_" in name}
    weights = item.weights() | {_official(name): tensor for name, tensor in teacher.items()}
    outputs: dict[str, Tensor] = {}

    # The last forward pass remains, before the last move: the authors move the momentum encoder before it makes a
    # step's keys, we after the step before.
    def remember(module: nn.Module, *_: object) -> None:
        for name, parameter in module.named_parameters():
            outputs[f"final_{_official(name).replace('.', '/', 1)}"] = parameter.detach().clone()

    model.register_forward_hook(remember)
    run = Run(item, method, model, _official, weights=weights, decay_vectors=True).carry_out()
    momenta = [method.momentum.at(step, total) for step in range(total)]
    found = run.computed(outputs | {"momentum": torch.tensor(momenta, dtype=torch.float64)})
    found.config["batch_norm_eps"] = BATCH_NORM_EPS
    return found


def _official(name: str) -> str:
    """The authors' name of a parameter or buffer; their heads are one sequence of linear layer, batch norm and ReLU."""
    part, _, rest = name.replace(".copy.", ".").partition(".")
    if part.endswith("encoder"):
        return PARTS[part] + rest
    kind, number, parameter = rest.split(".")
    return f"{PARTS[part]}{3 * int(number) + (kind == 'norms')}.{parameter}"
