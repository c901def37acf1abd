"""Whole runs of the authors' fine-tuning scripts, from a pre-training checkpoint through our engine.

Official: facebookresearch/mae (`main_finetune.py`), microsoft/unilm beit and lxtGH/CAE (`run_class_finetuning.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pantomim.config import Pretrain
from pantomim.formats.mae import official_name as classifier_name
from pantomim.methods.supervised import Supervised, SupervisedConfig, SupervisedDraws
from pantomim.nn.mixing import Mixing, mix_images, mix_targets
from pantomim.nn.resize import adapt_encoder_weights, resample
from pantomim.nn.vit import EncoderConfig
from pantomim.parity import networks
from pantomim.parity.beit import beit_encoder, without_index
from pantomim.parity.cae import cae_encoder
from pantomim.parity.item import Computed, Item, distance
from pantomim.parity.trajectory import Tape, TestedRun, run_config

ROUNDED = 1e-6  # tolerance of what the scripts load, resize and mix in float32


def trajectory_finetune_mae(item: Item) -> Computed:
    """A run of MAE's `main_finetune.py`, with class token or mean pooling."""
    pool = "mean" if item.config.get("global_pool", True) else "class"
    method = _config(item, networks.encoder_config(item), pool=pool, head_init="mae", learn_positions=True)
    run = _Finetuning(item, method, "mae")
    found = run.carry_out().computed()
    found.errors |= off_resized_table(item, method.encoder)
    return found


def trajectory_finetune_mixup_mae(item: Item) -> Computed:
    """The same with mixup and CutMix, whose outcome is given; and our own mixing by what the authors drew."""
    found, config = trajectory_finetune_mae(item), item.config
    images, labels = item.input("images"), item.input("labels")
    worst, rows = {"mixed_images": 0.0, "soft_targets": 0.0}, config["batch_size"]
    parts = [ids for step in item.input("image_ids") for ids in step.split(rows)]
    given = {name: item.input(name).flatten(0, 1).split(rows) for name in worst}
    for number, (ids, drawn) in enumerate(zip(parts, item.numbers["mixing"], strict=True)):
        mixing = Mixing(drawn.get("lam", 1.0), tuple(drawn["box"]) if drawn.get("box") else None)
        targets = mix_targets(labels[ids], config["num_classes"], mixing.lam, config["smoothing"], torch.float64)
        ours = {"mixed_images": mix_images(images[ids], mixing), "soft_targets": targets}
        for name, tensor in ours.items():
            worst[name] = max(worst[name], distance(tensor, given[name][number]))
    found.errors |= {f"numbers/mixing/{name}": off / ROUNDED for name, off in worst.items()}
    return found


def trajectory_finetune_beit(item: Item) -> Computed:
    """A run of BEiT's `run_class_finetuning.py`."""
    position = "learned" if item.config.get("absolute_positions") else "none"
    encoder = beit_encoder(item, relative_position="blocks", position=position)
    method = _config(item, encoder, pool="mean", head_init="beit")
    run = _Finetuning(item, method, "beit")
    shared = replace(encoder, relative_position="shared", image_size=_pretrained_size(item))
    found = run.carry_out().computed()
    found.errors |= _loaded(item, method, shared, item.weights("pretrained/"), "other")
    return found


def trajectory_finetune_cae(item: Item) -> Computed:
    """A run of CAE's `run_class_finetuning.py`."""
    tables = "blocks" if item.config.get("relative_tables", True) else "none"
    encoder = cae_encoder(item, relative_position=tables)
    method = _config(item, encoder, pool="mean", head_init="beit", norm_init="pretrained")
    run = _Finetuning(item, method, "beit")
    pretrained = item.weights("pretrained/encoder.")
    start = replace(encoder, relative_position="none", image_size=_pretrained_size(item))
    found = run.carry_out().computed()
    found.errors |= _loaded(item, method, start, pretrained, "sincos, rows first")
    return found


def off_resized_table(item: Item, encoder: EncoderConfig) -> dict[str, float]:
    """How far MAE's position table is from what our interpolation makes of the checkpoint's."""
    if not item.has("checkpoint_pos_embed"):
        return {}
    side = item.config["pretrain_img_size"] // encoder.patch_size
    resized = resample(item.input("checkpoint_pos_embed"), (side, side), encoder.grid, encoder.num_prefix)
    return {"state/pos_embed": distance(resized, item.weights()["pos_embed"]) / ROUNDED}


class _Finetuning(TestedRun):
    """A run of the supervised method."""

    method: Supervised

    def __init__(self, item: Item, config: SupervisedConfig, schedule: str) -> None:
        model = config.build()
        networks.filled(item, model.model, classifier_name, without_index(item))
        model.reset()
        super().__init__(item, _settings(item, config, schedule), model, _name, self._draws)

    def _draws(self, tape: Tape) -> SupervisedDraws:
        """Mixed images as given, or images and smoothed labels."""
        if self.item.has("mixed_images"):
            return SupervisedDraws(tape.now("mixed_images"), tape.now("soft_targets"))
        ids, config = tape.now("image_ids"), self.item.config
        labels = self.item.input("labels")[ids]
        targets = mix_targets(labels, config["num_classes"], 1.0, config["smoothing"], torch.float64)
        return SupervisedDraws(self.item.input("images")[ids], targets)

    def computed(self, outputs: Mapping[str, Tensor] | None = None) -> Computed:
        """With the moving average and its logits, where there is one."""
        more = dict(outputs or {})
        if self.method.ema is not None:
            average = self.method.ema.copy
            trained = {name for name, weight in self.method.model.named_parameters() if weight.requires_grad}
            named = average.named_parameters()
            more |= {f"final_ema/{classifier_name(name)}": weight for name, weight in named if name in trained}
            more |= {"eval_logits_ema": self.logits(average)}
        return super().computed(more)


def _config(item: Item, encoder: EncoderConfig, **parts: Any) -> SupervisedConfig:
    config = item.config
    return SupervisedConfig(
        encoder=encoder,
        num_classes=config["num_classes"],
        label_smoothing=config["smoothing"],
        mixup=0.0,
        cutmix=0.0,
        ema=config.get("ema_decay"),
        **parts,
    )


def _settings(item: Item, method: SupervisedConfig, schedule: str) -> Pretrain:
    config = item.config
    optim: dict[str, Any] = {
        "layer_decay": config["layer_decay"],
        "decay_tokens": False,
        "weight_decay_end": config.get("weight_decay_end"),
        "decay_relative": config.get("decay_relative_tables", True),
        "schedule": schedule,
    }
    return run_config(item, method, **optim)


def _pretrained_size(item: Item) -> tuple[int, int]:
    side = item.config["pretrain_img_size"]
    return side, side


def _loaded(
    item: Item, config: SupervisedConfig, start: EncoderConfig, weights: Mapping[str, Tensor], table: str
) -> dict[str, float]:
    """How far what we make of the checkpoint is from what the script made of it, by the name of each weight."""
    model, state = config.build().double(), without_index(item)
    ours = {name: tensor for name, tensor in weights.items() if name in start.build().state_dict()}
    adapted, _ = model.take_encoder(adapt_encoder_weights(ours, start, config.encoder)[0], table)
    found = model.encoder.state_dict() | adapted
    found |= {f"fc_norm.{name}": weight for name, weight in model.model.fc_norm.state_dict().items()}
    compared = {name: distance(found[name], state[name]) for name in state if not name.startswith("head.")}
    return {f"state/{name}": off / ROUNDED for name, off in compared.items()}


def _name(name: str) -> str:
    """The authors' name of a parameter or module of `Supervised`."""
    return classifier_name(name.removeprefix("model."))


ITEMS = (
    trajectory_finetune_mae,
    trajectory_finetune_mixup_mae,
    trajectory_finetune_beit,
    trajectory_finetune_cae,
)
