"""BEiT, and what has its network (SimMIM, data2vec): models, relative positions, whole runs.

Official: microsoft/unilm, microsoft/SimMIM, facebookresearch/data2vec_vision.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pantomim.core.mask import Mask
from pantomim.formats.mae import official_name as classifier_name
from pantomim.masking.grid import GridMasker
from pantomim.methods.base import Draws
from pantomim.methods.beit import BEiT, BEiTConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.momentum import Momentum
from pantomim.nn.relative import num_relative_rows, relative_bias, relative_index
from pantomim.nn.resize import growing_offsets, resize_relative_table
from pantomim.nn.tokens import normalise_tokens, unpatchify
from pantomim.nn.vit import Encoder, EncoderConfig, Features, MaskTokens
from pantomim.optim import Schedule, parameter_groups
from pantomim.parity import networks
from pantomim.parity.item import Computed, Item
from pantomim.parity.mae import classified
from pantomim.parity.statistics import initialisation
from pantomim.parity.trajectory import GivenIds, Run
from pantomim.targets.base import Target
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTarget, FeatureTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTarget
from pantomim.teachers.base import Guidance, Query
from pantomim.teachers.encoder import EMATeacher


def beit_pretrain(item: Item) -> Computed:
    """Tokens, scores, loss and every gradient, with another number of masked patches in each image."""
    masked, method = item.input("mask"), BEiTConfig(encoder=beit_encoder(item))
    counts, labels = masked.sum(dim=1), torch.zeros_like(masked, dtype=torch.long)
    labels[masked] = item.input("labels")  # image by image, in raster order
    target = TokenTarget(GivenIds(item, labels, method.encoder.grid))
    model = networks.filled(item, method.build(target=target), official_name)
    mask = Mask.from_masked(masked, int(counts.max()), varies=True)
    decay = networks.decay_used(item.numbers.get("pretraining_parameter_groups", []))
    found, result, latent = _step(item, model, mask, official_name, decay)
    everywhere = model.head(latent.patches)
    found.outputs |= {
        "tokens_after_norm": networks.joined(latent),
        "logits_all": everywhere,
        "logits_masked": everywhere[masked],
        "accuracy": result["accuracy"],
    }
    if model.encoder.rel_pos_bias is not None:
        found.outputs["relative_bias"] = model.encoder.rel_pos_bias(model.encoder.relative_index)
    found.config["masked_counts"] = counts.tolist()
    found.errors |= initialisation(item, lambda: method.build(target=target), official_name)
    return found


def simmim_pretrain(item: Item) -> Computed:
    """Features, the picture that is predicted, the loss and every gradient; the head's rows are in another order."""
    config, (method, model) = item.config, _simmim(item)
    networks.filled(item, model, simmim_name, _ours(item))
    counted = GridMasker(ratio=config["mask_ratio"], cell=config["mask_patch_size"] // config["patch_size"])
    mask = Mask.from_masked(item.input("mask").flatten(1).bool(), counted.num_masked(method.encoder.grid))
    found, _, latent = _step(item, model, mask, simmim_name)
    found.outputs = _theirs(item, found.outputs) | {
        "feature_map": latent.patches.mT.unflatten(-1, method.encoder.grid),
        "reconstruction": unpatchify(model.head(latent.patches), config["patch_size"], method.encoder.grid),
    }
    for group in found.numbers["pretraining_parameter_groups"]:
        group["weight_decay"] = "default" if group["weight_decay"] else 0.0
    found.numbers["mask_count"] = {key: _count(key) for key in item.numbers.get("mask_count", {})}
    found.errors |= initialisation(item, method.build, simmim_name)
    return found


def _step(
    item: Item, model: BEiT, mask: Mask, names: networks.Names, decay: float = 0.05
) -> tuple[Computed, dict[str, Tensor], Features]:
    """Loss, gradients and the optimiser's groups; what the model returned; and the encoder's output."""
    result = model(networks.batch(item), Draws(mask))
    found = networks.backward(item, result["loss"], model, names)
    found.outputs["loss"] = result["loss"]
    groups = parameter_groups(model, decay, decay_tokens=False, decay_mask_token=True)
    found.numbers["pretraining_parameter_groups"] = networks.described(groups, names)
    return found, result, model.encoder(item.input("images"), mask_tokens=MaskTokens(mask.masked, model.mask_token))


def beit_finetune(item: Item) -> Computed:
    """The classifier with a table of relative positions in every block, its layer-wise groups, and the schedules."""
    found, encoder = block_classifier(item, beit_encoder)
    for number, block in enumerate(encoder.each_block(item.input("images"))):
        found.outputs[f"block_{number}_output"] = networks.joined(block)
    found.numbers["lr_schedules"] = [_schedule(entry) for entry in item.numbers.get("lr_schedules", [])]
    return found


def block_classifier(
    item: Item, sizes: Callable[..., EncoderConfig], *, learn_positions: bool = True
) -> tuple[Computed, Encoder]:
    """A classifier with relative positions in every block and mean pooling, as far as the item has them."""
    config = item.config
    encoder = sizes(item, relative_position="blocks" if config["per_block_relative_bias"] else "none").build()
    pool: Literal["mean", "class"] = "mean" if config["mean_pooling"] else "class"
    classifier = Classifier(encoder, config["num_classes"], pool, learn_positions=learn_positions)
    found = classified(item, classifier, item.weights())
    trained = [classifier_name(name) for name, weight in classifier.named_parameters() if weight.requires_grad]
    found.numbers["trained_parameters"] = trained
    return found, encoder


def trajectory_beit(item: Item) -> Computed:
    """A run of BEiT's `run_beit_pretraining.py`."""
    method = BEiTConfig(encoder=beit_encoder(item))
    return _run(item, method, TokenTarget(GivenIds(item, item.input("token_ids"), method.encoder.grid))).computed()


def trajectory_data2vec(item: Item) -> Computed:
    """A run of data2vec's `run_cyclical.py`: the same student, and its moving average as teacher."""
    config, method = item.config, BEiTConfig(encoder=beit_encoder(item))
    encoder, momentum = method.encoder.build(), Momentum(config["ema_decay"])
    layers, beta, normed = sorted(config["target_layers"]), config["l1_beta"], config["post_target_layer_norm"]
    if len(layers) > 1 and layers == list(range(layers[0], encoder.depth)):
        teacher = EMATeacher(encoder, momentum, blocks=len(layers))
    else:
        teacher = _Layers(encoder, momentum, layers)
    distance = Distance("smooth_l1", beta=beta) if beta else Distance("l1")
    features = FeatureTargetConfig(normalise="layernorm" if normed else "none", distance=distance)
    run = _run(item, method, FeatureTarget(features, teacher, encoder.grid))
    return run.computed({f"final_teacher/{name}": tensor for name, tensor in teacher.encoder.named_parameters()})


def trajectory_simmim(item: Item) -> Computed:
    """A run of SimMIM's `main_simmim.py`."""
    config, (method, model) = item.config, _simmim(item)
    drop = {"schedule": "drop", "drop_at": min(config["milestone"] / config["epochs"], 1.0), "lead": -1}
    rates = {"start_lr": config["start_lr"], "min_lr": config["gamma"] * config["lr"]}
    optim: dict[str, Any] = {"decay_tokens": False, "decay_mask_token": True, **drop, **rates}
    run = Run(item, method, model, simmim_name, weights=_ours(item), **optim).carry_out()
    return run.computed(_theirs(item, run.weights("final/")))


def _run(item: Item, method: BEiTConfig, target: Target) -> Run:
    """A finished run of an encoder over mask tokens, whatever it predicts."""
    optim: dict[str, Any] = {"schedule": "beit", "decay_tokens": False, "decay_mask_token": True}
    return Run(item, method, method.build(target=target), official_name, kept=("target.",), **optim).carry_out()


class _Layers(EMATeacher):
    """The mean over chosen blocks, each token of each standardised, also of one."""

    def __init__(self, student: Encoder, momentum: Momentum, layers: list[int]) -> None:
        super().__init__(student, momentum)
        self.layers = layers

    @torch.no_grad()
    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        outputs = [networks.joined(block) for block in self.encoder.each_block(images)]
        normed = [normalise_tokens(outputs[number], unbiased=False, eps=1e-5) for number in self.layers]
        tokens = torch.stack(normed).mean(dim=0)
        return Guidance(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :])


def beit_relative_index(item: Item) -> Computed:
    """Rows of the table for every pair of tokens, whole or sampled, and the biases that a table gives."""
    outputs, rows, larger = dict[str, Tensor](), dict[str, int](), dict[str, dict[str, Any]]()
    for height, width in item.config.get("grids", []):
        grid, key = (height, width), f"{height}x{width}"
        outputs[f"index_{key}"] = relative_index(grid, class_token=True)
        outputs[f"bias_{key}"] = relative_bias(item.input(f"table_{key}"), outputs[f"index_{key}"])
        rows[key] = num_relative_rows(grid, class_token=True)
    for height, width, pairs in item.config.get("sampled_grids", []):
        pairwise = relative_index((height, width), class_token=True)
        larger[f"{height}x{width}"] = {
            "sum": pairwise.sum().item(),
            "sum_of_squares": pairwise.square().sum().item(),
            "row_1_sum": pairwise[1].sum().item(),
            "column_1_sum": pairwise[:, 1].sum().item(),
            "entries [query, key, index]": [[query, key, pairwise[query, key].item()] for query, key in pairs],
        }
    return Computed(outputs, {"table_rows": rows, "larger_grids": larger})


def beit_relative_resize(item: Item) -> Computed:
    """Tables for another grid, and the offsets between which they are interpolated."""
    found = Computed()
    for number, (side, to, heads) in enumerate(item.config["cases"]):
        resized = resize_relative_table(item.input(f"table_{number}"), (side, side), (to, to))
        found.outputs[f"table_{number}_{side}to{to}"] = resized[:, :heads]
        offsets = growing_offsets(2 * side - 1, 2 * to - 1)
        middle = len(offsets) // 2
        found.numbers[f"case_{number}"] = {
            "source_coordinates": offsets.tolist(),
            "target_coordinates": [float(offset) for offset in range(1 - to, to)],
            "ratio_q": offsets[middle + 2] - offsets[middle + 1],
        }
    return found


def beit_encoder(item: Item, **settings: Any) -> EncoderConfig:
    """BEiT's encoder of the sizes that an item states."""
    stated = {
        "position": "learned" if item.config["absolute_positions"] else "none",
        "relative_position": "shared" if item.config.get("shared_relative_bias") else "none",
        "attention_bias": "qv",
        "layer_scale": item.config["layer_scale_init"] or None,
        "initialisation": "beit",
    }
    return networks.encoder_config(item, **(stated | settings))


def official_name(name: str) -> str:
    """The authors' name of a parameter of `BEiT`."""
    return f"lm_{name}" if name.startswith("head.") else classifier_name(name)


def simmim_name(name: str) -> str:
    """The name of a parameter of `BEiT` in SimMIM, where the head is a convolution."""
    return "encoder.mask_token" if name == "mask_token" else name.replace("head.", "decoder.0.")


def _schedule(entry: Mapping[str, Any]) -> dict[str, Any]:
    given = entry["arguments"]
    each = given["iterations_per_epoch"]
    warmup, total = given.get("warmup_steps", given["warmup_epochs"] * each), given["epochs"] * each
    schedule = Schedule(given["base"], given["final"], warmup, total, given.get("start", 0.0))
    return {**entry, "length": total, "values": [[step, schedule.beit(step)] for step, _ in entry["values"]]}


def _simmim(item: Item) -> tuple[BEiTConfig, BEiT]:
    target = PixelTargetConfig(normalise="none", distance=Distance("l1"))
    method = BEiTConfig(encoder=beit_encoder(item), target=target, initialise_head=False)
    return method, method.build()


def _ours(item: Item) -> dict[str, Tensor]:
    """SimMIM's weights; its head is a convolution, with one row for each of a patch's pixels."""
    weights = item.weights()
    for name in [name for name in weights if "decoder.0." in name]:
        weights[name] = _regrouped(weights[name].squeeze(), item.input("images").shape[1])
    return weights


def _theirs(item: Item, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the authors' names, those of the head in their order and shape."""
    named = tensors.items()
    head = {name: _regrouped(tensor, item.config["patch_size"] ** 2) for name, tensor in named if "decoder.0." in name}
    return dict(tensors) | {name: t[:, :, None, None] if t.ndim > 1 else t for name, t in head.items()}


def _regrouped(rows: Tensor, groups: int) -> Tensor:
    """Rows with the channel slowest, as in a pixel shuffle, to ours with the channel fastest; or the other way."""
    return rows.unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)


def _count(key: str) -> int:
    """Masked cells of a square image, described as in "input 224, mask patch 32, ratio 0.6"."""
    size, patch, ratio = re.findall(r"[\d.]+", key)
    side = int(size) // int(patch)
    return GridMasker(ratio=float(ratio), cell=1).num_masked((side, side))
