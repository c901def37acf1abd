"""MAE, and what fine-tuning shares between methods: models, positions, LARS, losses and a whole run.

Official: facebookresearch/mae, timm 0.3.2.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.mask import Mask
from pantomim.formats.mae import official_name
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.mae import MAEConfig
from pantomim.nn.blocks import DropPath
from pantomim.nn.heads import Classifier
from pantomim.nn.mixing import Mixing, cutmix_lam, mix_images, mix_targets
from pantomim.nn.position import sincos_2d
from pantomim.nn.resize import resample
from pantomim.nn.tokens import patchify
from pantomim.optim import LARS, Schedule, layer_scale, parameter_groups
from pantomim.parity import networks
from pantomim.parity.item import Computed, Item
from pantomim.parity.statistics import initialisation
from pantomim.parity.trajectory import Run
from pantomim.targets.pixels import PixelTargetConfig

FLOAT32 = 2.0**-22  # where the official code rounds to float32, twice its spacing


def mae_pretrain(item: Item) -> Computed:
    """Masking, encoder, decoder, both losses and every gradient."""
    images, noise, weights, found = item.input("images"), item.input("noise"), item.weights(), Computed()
    norms: dict[str, dict[str, float]] = {}
    for variant in ("raw", "norm_pix"):
        method = mae_config(item, RandomMasker, normalise=variant == "norm_pix")
        model = method.build()
        tables = {"pos_embed": model.encoder.pos_embed, "decoder_pos_embed": model.decoder.decoder_pos_embed}
        found.errors |= {f"state/{name}": networks.off_table(t, weights[name]) for name, t in tables.items()}
        networks.filled(item, model, official_name)
        mask = Mask.from_scores(noise, method.masker.num_masked(method.encoder.grid))
        loss = model(networks.batch(item), Draws(mask))["loss"]
        step = networks.backward(item, loss, model, official_name, f"_{variant}")
        norms[variant] = step.numbers[f"gradient_l2_norms_{variant}"]
        found.outputs |= step.outputs | {f"loss_{variant}": loss, f"target_{variant}": model.target(images)}
    kept, masking = networks.in_order(mask, noise)
    latent = model.encoder(images, mask.ids_keep)
    found.outputs |= masking | {
        "patchified": patchify(images, model.encoder.patch_size),
        "patch_tokens_with_position": model.encoder.embed(images),
        "latent": networks.joined(latent, kept),
        "pred": model.decoder(latent, mask, everywhere=True),
    }
    stated = item.numbers.get("pretraining_weight_decay_groups", {})
    decay = item.config.get("weight_decay", networks.decay_used(stated.values()))
    groups = networks.described(parameter_groups(model, decay), official_name)
    found.numbers = {
        "gradient_l2_norms": norms,
        "len_keep": mask.ids_keep.shape[1],
        "pretraining_weight_decay_groups": {"decay" if each["weight_decay"] else "no_decay": each for each in groups},
    }
    found.config = networks.norm_eps(model)
    found.errors |= initialisation(item, method.build, official_name)
    return found


def trajectory_mae(item: Item) -> Computed:
    """A run of the authors' `main_pretrain.py`."""
    method = mae_config(item, RandomMasker, normalise=item.config["norm_pix_loss"])
    return Run(item, method, method.build(), official_name).carry_out().computed()


def mae_finetune(item: Item) -> Computed:
    """The classifier with both poolings, its layer-wise groups, and the schedules."""
    found = Computed(relative={"drop_path_per_block": FLOAT32})
    drop_path = float(item.config.get("drop_path_rate", 0.0))
    poolings: dict[str, Literal["mean", "class"]] = {"_global_pool": "mean", "_cls_token": "class"}
    for suffix, pool in poolings.items():
        if item.asks(suffix):
            unused = "norm." if pool == "mean" else "fc_norm."  # items store both
            encoder = networks.encoder_config(item, drop_path=drop_path).build()
            weights = {name: tensor for name, tensor in item.weights().items() if not name.startswith(unused)}
            step = classified(item, Classifier(encoder, item.config["num_classes"], pool), weights, suffix)
            found.outputs |= step.outputs
            found.numbers |= step.numbers
            found.config = step.config
            rates = [part.rate for part in encoder.modules() if isinstance(part, DropPath)]
            found.numbers["drop_path_per_block"] = rates
    found.numbers["lr_schedules"] = [_schedule(entry) for entry in item.numbers.get("lr_schedules", [])]
    return found


def classified(item: Item, classifier: Classifier, weights: Mapping[str, Tensor], suffix: str = "") -> Computed:
    """Outputs of a classifier with every gradient; and its groups for each decay from layer to layer that is stated."""
    images, groups = item.input("images"), f"layer_decay_groups{suffix}"
    logits = networks.filled(item, classifier.eval(), official_name, weights)(images)
    loss = F.cross_entropy(logits, item.input("labels"))
    found = networks.backward(item, loss, classifier, official_name, suffix)
    outputs = {"features": classifier.features(images), "logits": logits, "cross_entropy": loss}
    found.outputs |= {f"{name}{suffix}": tensor for name, tensor in outputs.items()}
    found.numbers[groups] = {}
    for decay, stated in item.numbers.get(groups, {}).items():
        scale = layer_scale(classifier.encoder.depth, float(decay))
        scaled = parameter_groups(classifier, networks.decay_used(stated), decay_tokens=False, lr_scale=scale)
        found.numbers[groups][decay] = networks.described(scaled, official_name)
    return found


def mae_lars(item: Item) -> Computed:
    """Parameters after each step, for given gradients and learning rates."""
    found, settings = Computed(), ("weight_decay", "momentum", "trust_coefficient")
    count = sum(name.startswith("param_") for name in item.spec["inputs"]["tensors"])
    parameters = [nn.Parameter(item.input(f"param_{index}")) for index in range(count)]
    optimizer = LARS(parameters, lr=0.0, **{name: item.config[name] for name in settings})
    for step, lr in enumerate(item.config["lr"]):
        optimizer.param_groups[0]["lr"] = lr
        for index, parameter in enumerate(parameters):
            parameter.grad = item.input(f"grad_{step}_{index}")
        optimizer.step()
        for index, parameter in enumerate(parameters):
            found.outputs[f"param_{index}_after_step_{step + 1}"] = parameter.detach().clone()
    return found


def mae_positions(item: Item) -> Computed:
    """Sine-cosine tables, whole or sampled, and resampled tables."""
    config, outputs = item.config, dict[str, Tensor]()
    for width, side, with_class in config.get("tables", []):
        key = f"table_d{width}_g{side}_{'cls' if with_class else 'nocls'}"
        outputs[key] = sincos_2d(width, (side, side), int(with_class))
    samples: dict[str, list[list[int]]] = {}
    for width, side, ids in config.get("samples", []):
        table, size = sincos_2d(width, (side, side), 1), f"d{width}_g{side}"
        samples[f"sample_{size}"] = ids
        outputs[f"sample_{size}"] = table[[token for token, _ in ids], [channel for _, channel in ids]]
        outputs[f"rowsum_{size}"] = table.sum(dim=1)
    for index, (side, to, _) in enumerate(config.get("interpolations", [])):
        table = item.input(f"pos_embed_{index}")
        num_prefix = table.shape[1] - side * side
        outputs[f"interpolated_{index}_{side}to{to}"] = resample(table, (side, side), (to, to), num_prefix)
    return Computed(outputs, {"samples_index": samples})


def finetune_losses(item: Item) -> Computed:
    """Label smoothing, soft targets, mixup and CutMix."""
    config, outputs = item.config, dict[str, Tensor]()
    logits, labels, images = item.input("logits"), item.input("labels"), item.input("images")
    for smoothing in config["smoothing"]:
        outputs[f"label_smoothing_ce_{smoothing}"] = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        for lam in config["lam"]:
            target = mix_targets(labels, config["num_classes"], lam, smoothing, dtype=logits.dtype)
            outputs[f"mixup_target_lam{lam}_smoothing{smoothing}"] = target
            outputs[f"soft_target_ce_lam{lam}_smoothing{smoothing}"] = F.cross_entropy(logits, target)
    for lam in config["lam"]:
        outputs[f"mixup_images_lam{lam}"] = mix_images(images, Mixing(lam))
    for index, (top, bottom, left, right) in enumerate(config["boxes"]):
        box = (top, bottom, left, right)
        lam = cutmix_lam(box, (images.shape[2], images.shape[3]))
        outputs[f"cutmix_images_box{index}"] = mix_images(images, Mixing(lam, box))
        outputs[f"cutmix_lambda_box{index}"] = images.new_tensor([lam])
    return Computed(outputs)


def mae_config(item: Item, masker: type[RandomMasker | ColorNoiseMasker], *, normalise: bool) -> MAEConfig:
    """MAE of the sizes that an item states."""
    return MAEConfig(
        encoder=networks.encoder_config(item),
        decoder=networks.decoder_config(item),
        masker=masker(ratio=float(item.config["mask_ratio"])),
        target=PixelTargetConfig(normalise="patch" if normalise else "none"),
    )


def _schedule(entry: Mapping[str, Any]) -> dict[str, Any]:
    given = entry["arguments"]
    schedule = Schedule(given["lr"], given["min_lr"], given["warmup_epochs"], given["epochs"])
    return {**entry, "values": [[epoch, schedule.mae(epoch)] for epoch, _ in entry["values"]]}
