"""I-JEPA: one step, its mask collator, and a run of the authors' `main`. Official: facebookresearch/ijepa."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pantomim.masking.multi_block import Blocks, MultiBlockMasker
from pantomim.methods.ijepa import IJEPAConfig, PredictorConfig
from pantomim.nn.momentum import Momentum
from pantomim.optim import parameter_groups
from pantomim.parity.item import Computed, Item
from pantomim.parity.networks import backward, batch, encoder_config, filled, watch
from pantomim.parity.recorded import Recorded
from pantomim.parity.statistics import off_mean
from pantomim.parity.trajectory import Run, Tape

BATCHES = 1_000  # of our own, which the tolerances of the statistics are stated for


def ijepa_pretrain(item: Item) -> Computed:
    """Context, predictions, targets, loss and gradients; weights after one AdamW step and one moving average."""
    config = item.config
    blocks = Blocks(item.input("masks_enc"), item.input("masks_pred"))
    model = filled(item, _method(item, Momentum(config["momentum"])).build(), str, _weights(item, "target/"))
    seen = watch({"context": model.encoder, "prediction": model.predictor})
    loss = model(batch(item), blocks)["loss"]
    found = backward(item, loss, model, str)
    target = model.target(item.input("images"), blocks.targets).unsqueeze(1).expand(-1, len(blocks.context), -1, -1, -1)
    found.outputs |= seen | {"context": seen["context"].patches, "loss": loss, "target": target.flatten(0, 2)}
    groups = parameter_groups(model, config["weight_decay"])
    torch.optim.AdamW(groups, lr=config["lr"], betas=tuple(config["betas"]), eps=config["eps"]).step()
    model.update_ema(0)
    found.outputs |= {f"after/{name}": p for name, p in model.named_parameters() if p.requires_grad}
    found.outputs |= {f"target_after/{name}": p for name, p in model.target_encoder.copy.named_parameters()}
    return found


def ijepa_masks(item: Item) -> Computed:
    """The lists that recorded numbers give; how often each patch is in a context and in a target of our own draws."""
    settings, found = item.config["settings"], Computed(numbers={"traces": item.numbers["traces"]})
    for trace in item.numbers["traces"]:
        lists = _drawn(settings[trace["setting"]], _Replay(trace["draws"]))
        for name, ids in zip(("masks_enc", "masks_pred"), lists, strict=True):
            found.outputs[f"setting_{trace['setting']}/trace_{trace['index']}/{name}"] = torch.from_numpy(ids)
    for stated in item.numbers.get("statistics", []):
        number = stated["setting"]
        numbers = random.Random(number)
        drawn = [_drawn(settings[number], numbers) for _ in range(BATCHES)]
        for name, lists in zip(("context", "target"), zip(*drawn, strict=True), strict=True):
            side = settings[number]["img_size"] // settings[number]["patch_size"]
            counts = sum(np.bincount(ids.reshape(-1), minlength=side**2) for ids in lists)
            rows = sum(ids.shape[0] * ids.shape[1] for ids in lists)
            shares = torch.from_numpy((counts / rows).reshape(side, side))
            found.outputs[f"setting_{number}/probability_{name}"] = shares
            lengths, theirs = np.array([ids.shape[2] for ids in lists]), stated[f"{name}_length"]
            off = off_mean(theirs["mean"], theirs["std"], stated["batches"], lengths)
            found.errors[f"numbers/statistics/{number}/{name}_length"] = off
    return found


def trajectory_ijepa(item: Item) -> Computed:
    """The authors' loop: rates of the step after, schedules longer than the run, rising weight decay and momentum."""
    config = item.config
    momentum = Momentum(config["ema"][0], config["ema"][1], shape="linear")
    method = _method(item, momentum)
    length = config["ipe_scale"] * config["epochs"] * config["steps_per_epoch"]
    model = method.build(length)
    rates = {"start_lr": config["start_lr"], "min_lr": config["final_lr"], "stretch": config["ipe_scale"], "lead": 1}
    rates |= {"weight_decay_end": config["final_weight_decay"]}
    run = Run(item, method, model, str, _draws, weights=_weights(item, "encoder/"), **rates).carry_out()
    momenta = [momentum.at(step, length) for step in range(run.total)]
    networks = {"final": model.encoder, "final_predictor": model.predictor, "final_target": model.target_encoder.copy}
    outputs = {f"{name}/{n}": p for name, network in networks.items() for n, p in network.named_parameters()}
    return run.computed(outputs | {"momentum": torch.tensor(momenta, dtype=torch.float64)})


class _Replay(random.Random):
    def __init__(self, draws: list[list[Any]]) -> None:
        self.recorded = Recorded(draws, exact=True)

    def random(self) -> float:
        return float(self.recorded.next("uniform"))

    def randrange(self, high: int) -> int:  # type: ignore[override]
        return self.recorded.integers(0, high)


def _method(item: Item, momentum: Momentum) -> IJEPAConfig:
    config = item.config
    sizes = PredictorConfig(config["pred_emb_dim"], config["pred_depth"], float(config["pred_mlp_ratio"]))
    encoder = encoder_config(item, class_token=False, initialisation="normal")
    masker = MultiBlockMasker(min_keep=0)  # masks are given
    return IJEPAConfig(encoder=encoder, predictor=sizes, masker=masker, momentum=momentum)


def _weights(item: Item, target: str) -> dict[str, Tensor]:
    """Of all three networks; the target encoder's are stored under a prefix of their own, or begin as the encoder's."""
    parts = {"encoder": "encoder/", "predictor": "predictor/", "target_encoder.copy": target}
    return {f"{part}.{name}": tensor for part in parts for name, tensor in item.weights(parts[part]).items()}


def _drawn(setting: Mapping[str, Any], numbers: random.Random) -> tuple[np.ndarray, np.ndarray]:
    side = setting["img_size"] // setting["patch_size"]
    ranges = {"context_scale": "enc_mask_scale", "target_scale": "pred_mask_scale", "target_aspect": "aspect_ratio"}
    how: Any = {ours: tuple(setting[theirs]) for ours, theirs in ranges.items()}
    how |= {"num_targets": setting["num_pred_masks"], "num_contexts": setting["num_enc_masks"]}
    masker = MultiBlockMasker(min_keep=setting["min_keep"], allow_overlap=setting["allow_overlap"], **how)
    return masker.draw(setting["batch_size"], (side, side), numbers)


def _draws(tape: Tape) -> Blocks:
    """The lists of this micro-batch's rows, without what fills them up."""
    lists = (tape.item.input(name)[tape.step][:, tape.rows] for name in ("masks_enc", "masks_pred"))
    return Blocks(*(ids[..., : int((ids >= 0).sum(dim=-1).min())] for ids in lists))
