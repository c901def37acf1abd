"""MAE: pre-training, fine-tuning, positions and LARS, rebuilt with our modules.

Official: facebookresearch/mae. Visible patches are in the order of the noise there and in raster order here; what is
compared is put into the official order.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.config import Pretrain
from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.files import load_exactly
from pantomim.formats.mae import official_name, our_name
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.nn.blocks import DropPath
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.position import sincos_2d
from pantomim.nn.resize import resample
from pantomim.nn.tokens import patchify, take
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import LARS, Group, cosine_schedule, layer_decay_groups, parameter_groups
from pantomim.parity.compare import decay_used, distance, gradients, norm_eps, norms
from pantomim.parity.initialisation import initialisation
from pantomim.parity.item import Computed, Item
from pantomim.parity.sizes import decoder_config, encoder_config
from pantomim.parity.trajectory import Run, Tape, fill, run_config
from pantomim.targets.pixels import PixelTargetConfig

FLOAT32 = 2.0**-22  # where the official code rounds to float32, twice its spacing


def pretrain(item: Item) -> Computed:
    """Masking, encoder, decoder, both losses and every gradient."""
    images, noise, weights = item.input("images"), item.input("noise"), item.weights()
    state = {our_name(name): tensor for name, tensor in weights.items()}
    outputs: dict[str, Tensor] = {}
    gradient_norms: dict[str, dict[str, float]] = {}
    tables: dict[str, float] = {}
    for variant, normalize in (("raw", False), ("norm_pix", True)):
        config = _pretrain_config(item, images, normalize)
        model = config.build().double()
        built = {name: getattr(part, name).detach().clone() for name, part in _tables(model).items()}
        load_exactly(model, state, item.name)
        mask = Mask.from_scores(noise, config.masker.num_masked(config.encoder.grid))
        result = model(Batch(images, total=len(images)), Draws(mask))
        result["loss"].backward()
        parameters = _official(model)
        gradient_norms[variant] = norms(parameters)
        outputs[f"loss_{variant}"] = result["loss"]
        outputs |= gradients(f"grad_{variant}/", parameters)
        if normalize:
            outputs["target_norm_pix"] = model.target(images)
        else:
            outputs |= _parts(model, images, noise, mask)
            # Stored tables are rounded to float32; ours, as built, must be the same ones.
            tables = {f"state/{name}": distance(built[name], weights[name]) / 1e-6 for name in built}
    groups = item.numbers.get("pretraining_weight_decay_groups", {})
    weight_decay = item.config.get("weight_decay", groups.get("decay", {}).get("weight_decay", 0.05))
    return Computed(
        outputs,
        numbers={
            "gradient_l2_norms": gradient_norms,
            "len_keep": mask.ids_keep.shape[1],
            "pretraining_weight_decay_groups": {
                "decay" if group["weight_decay"] else "no_decay": _group(group)
                for group in parameter_groups(model, weight_decay)
            },
        },
        config={"layer_norm_eps": norm_eps(model)},
        deviations=tables | initialisation(item, lambda: _official(config.build())),
    )


def trajectory(item: Item) -> Computed:
    """A run of the authors' `main_pretrain.py`."""
    config = item.config
    method = MAEConfig(
        encoder=encoder_config(config, item.input("images")),
        decoder=decoder_config(config),
        masker=RandomMasker(ratio=float(config["mask_ratio"])),
        target=PixelTargetConfig(normalise="patch" if config["norm_pix_loss"] else "none"),
    )
    return masked_pixels(item, method, run_config(item, method), official_name)


def masked_pixels(item: Item, method: MAEConfig, config: Pretrain, official: Callable[[str], str]) -> Computed:
    """A run whose masks are given by noise, of MAE or of ColorMAE, where the largest values stay visible."""
    model, num_masked = method.build().double(), method.masker.num_masked(method.encoder.grid)
    fill(model, item.weights(), official, item.name)
    noise = "windows" if item.has("windows") else "noise"

    def draws(tape: Tape) -> Draws:
        return Draws(tape.scores(noise, num_masked, largest_visible=noise == "windows"))

    return Run(config, model, Tape(item), draws, official).carry_out().computed()


def finetune(item: Item) -> Computed:
    """The classifier with both poolings, its layer-wise groups, and the schedules."""
    images, labels, weights = item.input("images"), item.input("labels"), item.weights()
    outputs: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    poolings: tuple[tuple[str, Literal["mean", "class"]], ...] = (("global_pool", "mean"), ("cls_token", "class"))
    for variant, pool in poolings:
        encoder = _encoder_config(item, images, drop_path=float(item.config.get("drop_path_rate", 0.0))).build()
        classifier = Classifier(encoder, item.config["num_classes"], pool).double().eval()
        unused = "norm." if pool == "mean" else "fc_norm."  # the item stores both
        state = {our_name(name): t for name, t in weights.items() if not name.startswith(unused)}
        load_exactly(classifier, state, item.name)
        features, logits = classifier.features(images), classifier(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        parameters = _official(classifier)
        outputs |= {
            f"features_{variant}": features,
            f"logits_{variant}": logits,
            f"cross_entropy_{variant}": loss,
        } | gradients(f"grad_{variant}/", parameters)
        numbers[f"gradient_l2_norms_{variant}"] = norms(parameters)
        numbers[f"layer_decay_groups_{variant}"] = {
            decay: [_group(group) for group in layer_decay_groups(classifier, decay_used(groups), float(decay))]
            for decay, groups in item.numbers.get(f"layer_decay_groups_{variant}", {}).items()
        }
    numbers["drop_path_per_block"] = _drop_path(classifier)
    numbers["lr_schedules"] = [_schedule(entry) for entry in item.numbers.get("lr_schedules", [])]
    return Computed(
        outputs,
        numbers,
        relative={"drop_path_per_block": FLOAT32},
        config={"layer_norm_eps": norm_eps(classifier)},
    )


def lars(item: Item) -> Computed:
    """Parameters after each step, for given gradients and learning rates."""
    config = item.config
    count = sum(name.startswith("param_") for name in item.spec["inputs"]["tensors"])
    parameters = [nn.Parameter(item.input(f"param_{index}")) for index in range(count)]
    optimizer = LARS(
        parameters,
        lr=0.0,
        weight_decay=config["weight_decay"],
        momentum=config["momentum"],
        trust_coefficient=config["trust_coefficient"],
    )
    outputs: dict[str, Tensor] = {}
    for step, lr in enumerate(config["lr"]):
        optimizer.param_groups[0]["lr"] = lr
        for index, parameter in enumerate(parameters):
            parameter.grad = item.input(f"grad_{step}_{index}")
        optimizer.step()
        for index, parameter in enumerate(parameters):
            outputs[f"param_{index}_after_step_{step + 1}"] = parameter.detach().clone()
    return Computed(outputs)


def positions(item: Item) -> Computed:
    """Sine-cosine tables, whole or sampled, and resampled tables."""
    config, outputs = item.config, {}
    for width, side, with_class in config["tables"]:
        key = f"table_d{width}_g{side}_{'cls' if with_class else 'nocls'}"
        outputs[key] = sincos_2d(width, (side, side), int(with_class))
    samples: dict[str, list[list[int]]] = {}
    for width, side, ids in config["samples"]:
        table, size = sincos_2d(width, (side, side), 1), f"d{width}_g{side}"
        samples[f"sample_{size}"] = ids
        outputs[f"sample_{size}"] = table[[token for token, _ in ids], [channel for _, channel in ids]]
        outputs[f"rowsum_{size}"] = table.sum(dim=1)
    for index, (side, to, _) in enumerate(config["interpolations"]):
        table = item.input(f"pos_embed_{index}")
        num_prefix = table.shape[1] - side * side
        outputs[f"interpolated_{index}_{side}to{to}"] = resample(table, (side, side), (to, to), num_prefix)
    return Computed(outputs, numbers={"samples_index": samples})


def _encoder_config(item: Item, images: Tensor, drop_path: float = 0.0) -> EncoderConfig:
    config, channels = item.config, images.shape[1]
    return EncoderConfig(
        image_size=(images.shape[2], images.shape[3]),
        patch_size=config["patch_size"],
        in_chans=channels,
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=float(config["mlp_ratio"]),
        drop_path=drop_path,
        mean=(0.0,) * channels,  # the items' images are normalised already
        std=(1.0,) * channels,
    )


def _pretrain_config(item: Item, images: Tensor, normalize: bool) -> MAEConfig:
    config = item.config
    return MAEConfig(
        encoder=_encoder_config(item, images),
        decoder=DecoderConfig(
            width=config["decoder_embed_dim"],
            depth=config["decoder_depth"],
            heads=config["decoder_num_heads"],
            mlp_ratio=float(config["mlp_ratio"]),
        ),
        masker=RandomMasker(ratio=float(config["mask_ratio"])),
        target=PixelTargetConfig(normalise="patch" if normalize else "none"),
    )


def _parts(model: MAE, images: Tensor, noise: Tensor, mask: Mask) -> dict[str, Tensor]:
    """What happens on the way to the loss, visible patches in the order of the noise."""
    kept = noise.gather(1, mask.ids_keep).argsort(dim=1)
    hidden = noise.gather(1, mask.ids_mask).argsort(dim=1)
    ids_keep = mask.ids_keep.gather(1, kept)
    ids_shuffle = torch.cat([ids_keep, mask.ids_mask.gather(1, hidden)], dim=1)
    latent = model.encoder(images, mask.ids_keep)
    return {
        "patchified": patchify(images, model.encoder.patch_size),
        "patch_tokens_with_position": model.encoder.embed(images),
        "ids_shuffle": ids_shuffle,
        "ids_keep": ids_keep,
        "ids_restore": ids_shuffle.argsort(dim=1),
        "mask": mask.masked,
        "latent": torch.cat([latent.prefix, take(latent.patches, kept)], dim=1),
        "pred": model.decoder(latent, mask, everywhere=True),
    }


def _tables(model: MAE) -> dict[str, nn.Module]:
    return {"pos_embed": model.encoder, "decoder_pos_embed": model.decoder}


def _drop_path(classifier: Classifier) -> list[float]:
    return [module.rate for module in classifier.encoder.modules() if isinstance(module, DropPath)]


def _official(model: nn.Module) -> dict[str, nn.Parameter]:
    return {official_name(name): parameter for name, parameter in model.named_parameters()}


def _group(group: Group) -> dict[str, Any]:
    return {
        "lr_scale": group["lr_scale"],
        "weight_decay": group["weight_decay"],
        "parameters": [official_name(name) for name in group["param_names"]],
    }


def _schedule(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An item's schedule, its rates replaced by ours."""
    arguments = entry["arguments"]
    rates = [
        [
            epoch,
            cosine_schedule(
                epoch,
                base=arguments["lr"],
                minimum=arguments["min_lr"],
                warmup=arguments["warmup_epochs"],
                total=arguments["epochs"],
            ),
        ]
        for epoch, _ in entry["values"]
    ]
    return {**entry, "values": rates}
