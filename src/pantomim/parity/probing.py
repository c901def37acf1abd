"""Whole runs of the authors' probing scripts: a head on a frozen encoder, trained by our engine.

Official: facebookresearch/mae (`main_linprobe.py`), CAE in either release (`run_linear.py`, `run_attentive.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from pantomim.formats.mae import official_name as encoder_name
from pantomim.methods.probe import Frozen, Probe, ProbeConfig
from pantomim.nn.heads import AttentiveHead, Classifier
from pantomim.nn.resize import adapt_encoder_weights
from pantomim.nn.vit import EncoderConfig
from pantomim.parity import networks
from pantomim.parity.beit import compare_indices, without_index
from pantomim.parity.cae import BLOCK, UNUSED_NORM, cae_encoder, head_name
from pantomim.parity.finetuning import ROUNDED, off_resized_table
from pantomim.parity.item import Computed, Item, distance
from pantomim.parity.trajectory import TestedRun, run_config

NETWORK, HEAD = "features.network.", "model."  # how our names of frozen and of trained parts begin


def trajectory_linprobe_mae(item: Item) -> Computed:
    """A run of MAE's `main_linprobe.py`, with class token or mean pooling."""
    encoder = networks.encoder_config(item)
    found = _linear(item, encoder, "mean" if item.config.get("global_pool") else "class")
    found.errors |= off_resized_table(item, encoder)
    return found


def trajectory_linear_cae(item: Item) -> Computed:
    """A run of CAE's `run_linear.py`, which resamples the checkpoint's positions."""
    encoder = _cae_encoder(item)
    found = _linear(item, encoder, "class")
    found.errors |= _off_loaded(item, encoder)
    return found


def trajectory_attentive_cae(item: Item) -> Computed:
    """A run of CAE's `run_attentive.py`, which keeps the position table of the new grid."""
    encoder, config = _cae_encoder(item), item.config
    optim = {"optimiser": "sgd", "schedule": "beit", "weight_decay_end": config.get("weight_decay_end")}
    run = _Probing(item, "attentive", Frozen(encoder.build(), _tokens), **optim)
    run.carry_out()
    assert isinstance(run.method.model, AttentiveHead)
    run.method.model.test_batch_statistics = True
    found = run.computed({"eval_logits_batch_statistics": run.logits(run.method.model)})
    found.errors |= _off_loaded(item, encoder, ("pos_embed",))
    return found


def _linear(item: Item, encoder: EncoderConfig, pool: Literal["mean", "class"]) -> Computed:
    """On one vector an image; vectors are in the group that decays, as the authors' LARS itself spares them."""
    network = Classifier(encoder.build(), item.config["num_classes"], pool)
    network.head = nn.Identity()  # type: ignore[assignment]
    optim = {"optimiser": "lars", "decay_vectors": True, "trust_coefficient": item.config["trust_coefficient"]}
    return _Probing(item, "linear", Frozen(network, Classifier.features), **optim).carry_out().computed()


class _Probing(TestedRun):
    """A run that trains a head alone."""

    method: Probe

    def __init__(self, item: Item, head: Literal["linear", "attentive"], features: Frozen, **optim: Any) -> None:
        config, (_, channels, height, width) = item.config, item.input("images").shape
        # Of the first release, a layer norm that nothing reads.
        self.unused = {name: tensor for name, tensor in item.weights().items() if name.startswith(UNUSED_NORM)}
        self.linear = head == "linear"
        self.second_release = f"{BLOCK}norm_q.weight" in item.weights()
        classes, smoothing = config["num_classes"], config.get("smoothing", 0.0)
        method = ProbeConfig(head=head, num_classes=classes, heads=config["num_heads"], label_smoothing=smoothing)
        weights = {name: tensor for name, tensor in without_index(item).items() if name not in self.unused}
        model = networks.filled(item, method.build(features, (height, width), channels), self.official_name, weights)
        settings = run_config(item, method, momentum=config["momentum"], **optim)
        super().__init__(item, settings, model, self.official_name, lambda tape: None)

    def official_name(self, name: str) -> str:
        """The authors' name of a parameter, buffer or module of ours."""
        if name.startswith(NETWORK):
            return encoder_name(name.removeprefix(NETWORK))
        name = name.removeprefix(HEAD)
        if self.linear:
            return name.replace("head.", "head.1.").replace("norm.", "head.0.")
        theirs = head_name(name)
        return theirs.replace(f"{BLOCK}norm1_", f"{BLOCK}norm_") if self.second_release else theirs

    def computed(self, outputs: Mapping[str, Tensor] | None = None) -> Computed:
        """With the batch norm's statistics."""
        buffers = {f"{HEAD}{name}": buffer for name, buffer in self.method.model.named_buffers()}
        more = {f"final_statistics/{self.names(name)}": buffer for name, buffer in buffers.items()}
        more |= {f"final/{name}": tensor for name, tensor in self.unused.items()}
        found = super().computed(more | dict(outputs or {}))
        for name in self.unused:
            found.errors.pop(f"numbers/parameter_groups/{name}", None)
        return found


def _tokens(encoder: nn.Module, images: Tensor) -> Tensor:
    return networks.joined(encoder(images))


def _cae_encoder(item: Item) -> EncoderConfig:
    """With tables of relative positions, where the item has them: they are zero."""
    return cae_encoder(item, relative_position="blocks" if item.config.get("relative_tables") else "none")


def _off_loaded(item: Item, encoder: EncoderConfig, kept: tuple[str, ...] = ()) -> dict[str, float]:
    """How far what the script made of the checkpoint is from what we make of it; what is `kept` is as we build it."""
    side, built = item.config["pretrain_img_size"], encoder.build().double()
    start = replace(encoder, relative_position="none", image_size=(side, side))
    weights = item.weights("pretrained/encoder.")
    adapted, _ = adapt_encoder_weights({name: weights[name] for name in start.build().state_dict()}, start, encoder)
    ours = built.state_dict() | {name: weight for name, weight in adapted.items() if name not in kept}
    state = item.weights()
    off = {f"state/{name}": distance(weight, state[name]) / ROUNDED for name, weight in ours.items()}
    return off | compare_indices(built, item)


ITEMS = (trajectory_linprobe_mae, trajectory_linear_cae, trajectory_attentive_cae)
