"""MoCo v3: a run of the authors' `main_moco.py` through our engine. Official: facebookresearch/moco-v3."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pantomim.methods.mocov3 import MoCoV3Config
from pantomim.nn.momentum import Momentum
from pantomim.nn.projector import BATCH_NORM_EPS
from pantomim.parity.item import Computed, Item
from pantomim.parity.networks import encoder_config, fill
from pantomim.parity.trajectory import Run, Tape, run_config


def trajectory(item: Item) -> Computed:
    """Two views of each image, momentum encoder, batch norm in the heads.

    The authors move the momentum encoder before it makes a step's keys, we after the step before: so it is looked at
    before the last move.
    """
    config = item.config
    method = MoCoV3Config(
        encoder=encoder_config(config, item.input("images"), position="sincos_rows_first", initialisation="mocov3"),
        hidden=config["hidden"],
        dim=config["dim"],
        temperature=config["temperature"],
        momentum=Momentum(config["momentum"], 1.0 if config["momentum_cosine"] else None),
        freeze_patches=config["freeze_patches"],
    )
    total = config["steps"]
    model = method.build(total).double()
    teacher = {name: t for name, t in model.state_dict().items() if name.startswith("teacher_") or "running_" in name}
    fill(model, item.weights() | {_official(name): tensor for name, tensor in teacher.items()}, _official, item.name)
    model.reset()
    run = Run(run_config(item, method, decay_vectors=True), model, Tape(item), lambda tape: None, _official)
    run.carry_out(range(total - 1))
    keys: dict[str, Tensor] = {}

    def remember(module: nn.Module, *_: object) -> None:
        keys.update({name: p.detach().clone() for name, p in module.named_parameters()})

    model.register_forward_hook(remember)
    run.carry_out(range(total - 1, total))
    final = {_official(name): tensor for name, tensor in keys.items()}
    momenta = [method.momentum.at(step, total) for step in range(total)]
    outputs = {f"final_{name.replace('.', '/', 1)}": tensor for name, tensor in final.items()}
    computed = run.computed(outputs | {"momentum": torch.tensor(momenta, dtype=torch.float64)})
    return replace(computed, config={**computed.config, "batch_norm_eps": BATCH_NORM_EPS})


def _official(name: str) -> str:
    """The authors' name: heads are one sequence of linear layer, batch norm and ReLU."""
    part, _, rest = name.partition(".")
    owner, head = {
        "encoder": ("base_encoder.", False),
        "projector": ("base_encoder.head.", True),
        "predictor_head": ("predictor.", True),
        "teacher_encoder": ("momentum_encoder.", False),
        "teacher_projector": ("momentum_encoder.head.", True),
    }[part]
    rest = rest.removeprefix("copy.")
    if not head:
        return owner + rest
    kind, number, parameter = rest.split(".")
    return f"{owner}{3 * int(number) + (kind == 'norms')}.{parameter}"


ITEMS = {"trajectory_mocov3": trajectory}
