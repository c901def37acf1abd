"""BEiT: pre-training, fine-tuning and relative positions, rebuilt with our modules. Official: microsoft/unilm."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.files import load_exactly
from pantomim.methods.base import Draws
from pantomim.methods.beit import BEiT, BEiTConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.momentum import Momentum
from pantomim.nn.relative import num_relative_rows, relative_bias, relative_index
from pantomim.nn.resize import growing_offsets, resize_relative_table
from pantomim.nn.tokens import normalise_tokens
from pantomim.nn.vit import Encoder, EncoderConfig, MaskTokens, RelativePosition
from pantomim.optim import Group, beit_schedule, layer_decay_groups, parameter_groups
from pantomim.parity.cae import GivenIds
from pantomim.parity.compare import decay_used, gradients, norm_eps, norms
from pantomim.parity.initialisation import initialisation
from pantomim.parity.item import Computed, Item
from pantomim.parity.trajectory import PoolIds, Run, Tape, run_config
from pantomim.targets.base import Target
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTarget, FeatureTargetConfig
from pantomim.targets.tokens import TokenTarget
from pantomim.teachers.base import Guidance, Query
from pantomim.teachers.encoder import EMATeacher

INDEX = "relative_position_index"  # stored beside the weights; ours is made from the grid


def pretrain(item: Item) -> Computed:
    """Tokens, scores, loss and every gradient, with another number of hidden patches in each image."""
    config, images, masked = item.config, item.input("images"), item.input("mask")
    relative: RelativePosition = "shared" if config["shared_relative_bias"] else "none"
    method = BEiTConfig(encoder=encoder_config(item, images, relative))
    mask = Mask.from_masked(masked, max(config["masked_counts"]), varies=True)
    tokens = TokenTarget(GivenIds(item.input("labels"), mask, config["vocab_size"], method.encoder.grid))
    model = method.build(target=tokens).double()
    weights, indices = split_indices(item.weights())
    load_exactly(model, {our_name(name): tensor for name, tensor in weights.items()}, item.name)

    result = model(Batch(images, total=len(images)), Draws(mask))
    result["loss"].backward()
    latent = model.encoder(images, mask_tokens=MaskTokens(masked, model.mask_token))
    everywhere = model.head(latent.patches)
    parameters = official(model)
    outputs = {
        "tokens_after_norm": torch.cat([latent.prefix, latent.patches], dim=1),
        "logits_all": everywhere,
        "logits_masked": everywhere[masked],  # image by image, in raster order
        "loss": result["loss"],
        "accuracy": result["accuracy"],
        **gradients("grad/", parameters),
    }
    if model.encoder.rel_pos_bias is not None:
        outputs["relative_bias"] = model.encoder.rel_pos_bias(model.encoder.relative_index)
    groups = item.numbers.get("pretraining_parameter_groups", [])
    return Computed(
        outputs,
        numbers={
            "gradient_l2_norms": norms(parameters),
            "pretraining_parameter_groups": [
                _group(group, model)
                for group in parameter_groups(model, decay_used(groups), decay_tokens=False, decay_mask_token=True)
            ],
        },
        config={"layer_norm_eps": norm_eps(model), "masked_counts": masked.sum(dim=1).tolist()},
        deviations=compare_indices(model.encoder.relative_index, indices)
        | initialisation(item, lambda: official(method.build(target=tokens))),
    )


def trajectory(item: Item) -> Computed:
    """A run of the authors' `run_beit_pretraining.py`."""
    method = BEiTConfig(encoder=_run_encoder(item))
    tokens = PoolIds(item.input("token_ids"), item.config["vocab_size"], method.encoder.grid)
    return masked_tokens(item, method, TokenTarget(tokens), tokens.turn_to).computed()


def data2vec_trajectory(item: Item) -> Computed:
    """A run of data2vec's `run_cyclical.py`: the same student, and the moving average of it as teacher."""
    config, method = item.config, BEiTConfig(encoder=_run_encoder(item))
    encoder, momentum = method.encoder.build(), Momentum(config["ema_decay"])
    layers, beta = sorted(config["target_layers"]), config["l1_beta"]
    if len(layers) > 1 and layers == list(range(layers[0], encoder.depth)):
        teacher = EMATeacher(encoder, momentum, blocks=len(layers))
    else:
        teacher = _Layers(encoder, momentum, layers)
    features = FeatureTargetConfig(
        normalise="layernorm" if config["post_target_layer_norm"] else "none",
        distance=Distance("smooth_l1", beta=beta) if beta else Distance("l1"),
    )
    run = masked_tokens(item, method, FeatureTarget(features, teacher, encoder.grid))
    average = {f"final_teacher/{name}": tensor for name, tensor in teacher.encoder.named_parameters()}
    return run.computed(item.asked(average))


def masked_tokens(
    item: Item, method: BEiTConfig, target: Target, before: Callable[[Tape], None] = lambda tape: None
) -> Run:
    """A finished run of an encoder over mask tokens, whatever it predicts; `before` is told of each micro-batch."""
    model = method.build(target=target).double()
    weights, _ = split_indices(item.weights())
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("target.")}
    load_exactly(model, {our_name(name): tensor for name, tensor in weights.items()} | own, item.name)
    model.reset()

    def draws(tape: Tape) -> Draws:
        before(tape)
        return Draws(tape.masked())

    config = run_config(item, method, schedule="beit", decay_tokens=False, decay_mask_token=True)
    return Run(config, model, Tape(item), draws, lambda name: _official_name(model, name)).carry_out()


class _Layers(EMATeacher):
    """The mean over chosen blocks, each token of each standardised, also of one."""

    def __init__(self, student: Encoder, momentum: Momentum, layers: list[int]) -> None:
        super().__init__(student, momentum)
        self.layers = layers

    @torch.no_grad()
    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        """See `EncoderTeacher.forward`."""
        outputs = [torch.cat([block.prefix, block.patches], dim=1) for block in self.encoder.each_block(images)]
        normed = [normalise_tokens(outputs[number], unbiased=False, eps=1e-5) for number in self.layers]
        tokens = torch.stack(normed).mean(dim=0)
        return Guidance(tokens[:, : self.num_prefix], tokens[:, self.num_prefix :])


def _run_encoder(item: Item) -> EncoderConfig:
    config = item.config
    return replace(
        encoder_config(item, item.input("images"), "shared" if config["shared_relative_bias"] else "none"),
        layer_scale=config["layer_scale_init"] or None,
        drop_path=float(config["drop_path"]),
    )


def finetune(item: Item) -> Computed:
    """The classifier with a table of relative positions in every block, its layer-wise groups, and the schedules."""
    config, images, labels = item.config, item.input("images"), item.input("labels")
    relative: RelativePosition = "blocks" if config["per_block_relative_bias"] else "none"
    pool: Literal["mean", "class"] = "mean" if config["mean_pooling"] else "class"
    encoder = encoder_config(item, images, relative).build()
    classifier = Classifier(encoder, config["num_classes"], pool).double().eval()
    weights, indices = split_indices(item.weights())
    load_exactly(classifier, {our_name(name): tensor for name, tensor in weights.items()}, item.name)

    after: dict[str, Tensor] = {}
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _, __, found, n=number: after.update({f"block_{n}_output": found[0]}))
    logits = classifier(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    parameters = official(classifier)
    return Computed(
        {
            "features": classifier.features(images),
            "logits": logits,
            "cross_entropy": loss,
            **after,
            **gradients("grad/", parameters),
        },
        numbers={
            "gradient_l2_norms": norms(parameters),
            "layer_decay_groups": {
                decay: [
                    _group(group, classifier)
                    for group in layer_decay_groups(classifier, decay_used(groups), float(decay))
                ]
                for decay, groups in item.numbers.get("layer_decay_groups", {}).items()
            },
            "lr_schedules": [_schedule(entry) for entry in item.numbers.get("lr_schedules", [])],
        },
        config={"layer_norm_eps": norm_eps(classifier)},
        deviations=compare_indices(encoder.relative_index, indices),
    )


def index(item: Item) -> Computed:
    """Rows of the table for every pair of tokens, whole or sampled, and the biases that a table gives."""
    config, outputs = item.config, {}
    rows: dict[str, int] = {}
    for grid in map(_grid, config["grids"]):
        key = f"{grid[0]}x{grid[1]}"
        outputs[f"index_{key}"] = relative_index(grid, class_token=True)
        outputs[f"bias_{key}"] = relative_bias(item.input(f"table_{key}"), outputs[f"index_{key}"])
        rows[key] = num_relative_rows(grid, class_token=True)
    larger: dict[str, dict[str, Any]] = {}
    for height, width, pairs in config["sampled_grids"]:
        pairwise = relative_index((height, width), class_token=True)
        larger[f"{height}x{width}"] = {
            "sum": pairwise.sum().item(),
            "sum_of_squares": pairwise.square().sum().item(),
            "row_1_sum": pairwise[1].sum().item(),
            "column_1_sum": pairwise[:, 1].sum().item(),
            "entries [query, key, index]": [[query, key, pairwise[query, key].item()] for query, key in pairs],
        }
    return Computed(outputs, numbers={"table_rows": rows, "larger_grids": larger})


def resize(item: Item) -> Computed:
    """Tables for another grid, and the offsets between which they are interpolated."""
    outputs: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for number, (side, to, heads) in enumerate(item.config["cases"]):
        table = item.input(f"table_{number}")
        resized = resize_relative_table(table, (side, side), (to, to))
        outputs[f"table_{number}_{side}to{to}"] = resized[:, :heads]
        offsets = growing_offsets(2 * side - 1, 2 * to - 1)
        middle = len(offsets) // 2
        numbers[f"case_{number}"] = {
            "source_coordinates": offsets.tolist(),
            "target_coordinates": [float(offset) for offset in range(1 - to, to)],
            "ratio_q": offsets[middle + 2] - offsets[middle + 1],
        }
    return Computed(outputs, numbers=numbers)


def encoder_config(item: Item, images: Tensor, relative_position: RelativePosition) -> EncoderConfig:
    """BEiT's encoder of the sizes that an item states; SimMIM's is the same."""
    config, channels = item.config, images.shape[1]
    return EncoderConfig(
        image_size=(images.shape[2], images.shape[3]),
        patch_size=config["patch_size"],
        in_chans=channels,
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=float(config["mlp_ratio"]),
        position="learned" if config["absolute_positions"] else "none",
        relative_position=relative_position,
        attention_bias="qv",
        layer_scale=config["layer_scale_init"] or None,
        initialisation="beit",
        mean=(0.0,) * channels,  # the items' images are normalised already
        std=(1.0,) * channels,
    )


def split_indices(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters, and the matrices of relative positions that are stored beside them."""
    indices = {name: tensor for name, tensor in weights.items() if name.endswith(INDEX)}
    return {name: tensor for name, tensor in weights.items() if name not in indices}, indices


def compare_indices(ours: Tensor | None, stored: Mapping[str, Tensor]) -> dict[str, float]:
    """Stored matrices of relative positions, each equal to ours or not."""
    return {
        f"state/{name}": 0.0 if ours is not None and torch.equal(ours, tensor) else math.inf
        for name, tensor in stored.items()
    }


def our_name(name: str) -> str:
    """The name of an official parameter in `BEiT` or `Classifier`."""
    part = name.partition(".")[0]
    if part == "lm_head":
        return name.removeprefix("lm_")
    return name if part in {"mask_token", "fc_norm", "head"} else f"encoder.{name}"


def official(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under official names."""
    return {_official_name(model, name): parameter for name, parameter in model.named_parameters()}


def _official_name(model: nn.Module, name: str) -> str:
    if isinstance(model, BEiT) and name.startswith("head."):
        return f"lm_{name}"
    return name.removeprefix("encoder.")


def _group(group: Group, model: nn.Module) -> dict[str, Any]:
    return {
        "lr_scale": group["lr_scale"],
        "weight_decay": group["weight_decay"],
        "parameters": [_official_name(model, name) for name in group["param_names"]],
    }


def _schedule(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An item's schedule, its rates replaced by ours."""
    given = entry["arguments"]
    each = given["iterations_per_epoch"]
    total, warmup = given["epochs"] * each, given.get("warmup_steps", given["warmup_epochs"] * each)
    rates = [
        [
            step,
            beit_schedule(
                step,
                base=given["base"],
                minimum=given["final"],
                warmup=warmup,
                total=total,
                start=given.get("start", 0.0),
            ),
        ]
        for step, _ in entry["values"]
    ]
    return {**entry, "length": total, "values": rates}


def _grid(sides: list[int]) -> tuple[int, int]:
    rows, columns = sides
    return rows, columns
