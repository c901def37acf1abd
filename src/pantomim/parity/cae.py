"""CAE: pre-training, fine-tuning and the attentive probe, rebuilt with our modules. Official: lxtGH/CAE."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.cae import CROSS, Release, official_name, our_name
from pantomim.formats.files import load_exactly
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Draws
from pantomim.methods.cae import CAE, CAEConfig
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.heads import AttentiveHead, Classifier
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.tokens import put_back
from pantomim.nn.vit import EncoderConfig, RelativePosition
from pantomim.optim import Group, layer_decay_groups, parameter_groups
from pantomim.parity.compare import RELATIVE, decay_used, distance, gradients, norm_eps, norms
from pantomim.parity.initialisation import initialisation
from pantomim.parity.item import Computed, Item
from pantomim.parity.trajectory import PoolIds, Run, Tape, run_config
from pantomim.targets.tokens import TokenTarget

STORED_TABLE = 1e-6  # of a position table made and stored in float32
UNUSED = ("gamma_1_cross", "gamma_2_cross")  # official parameters that stay 1 where there are no scales


class GivenIds:
    """A tokenizer that knows the ids of the hidden patches, as an item gives them, and calls all others 0."""

    def __init__(self, labels: Tensor, mask: Mask, vocabulary: int, grid: tuple[int, int]) -> None:
        self.vocabulary, self.grid = vocabulary, grid
        self.ids = torch.zeros_like(mask.masked, dtype=torch.long)
        self.ids[mask.masked] = labels  # image by image, in raster order

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of the item."""
        return self.grid

    def __call__(self, images: Tensor) -> Tensor:
        """The ids, whatever the images are."""
        return self.ids


def pretrain(item: Item) -> Computed:
    """Encoder, alignment branch, regressor, decoder, losses and every gradient.

    The official code makes the table of the regressor and the decoder in float32; ours, as built, is compared, and the
    stored one is used for everything behind it, so that it can be compared to full precision.
    """
    images, masked, labels = item.input("images"), item.tensors["in/mask"], item.input("labels")
    config, weights = item.config, item.weights()
    ours = _pretrain_config(item, images)
    mask = Mask.from_masked(masked, config["num_mask_patches"])
    if not torch.equal(mask.masked, torch.zeros_like(masked).scatter_(1, mask.ids_mask, True)):
        raise ValueError(f"{item.name}: every image must hide {config['num_mask_patches']} patches")
    tokens = TokenTarget(GivenIds(labels, mask, config["vocab_size"], ours.encoder.grid))
    model = ours.build(target=tokens).double()
    built, stored = model.encoder.pos_embed, weights["encoder.pos_embed"]
    assert built is not None
    deviations = {"state/encoder.pos_embed": distance(built, stored) / STORED_TABLE}
    fixed = {name: t for name, t in weights.items() if name.endswith(UNUSED) and ours.regressor.layer_scale is None}
    deviations |= {f"state/{name}": math.inf for name, tensor in fixed.items() if not (tensor == 1).all()}
    load_exactly(model, {our_name(name): t for name, t in weights.items() if name not in fixed}, item.name)

    outputs = {
        "positions_masked": nn.functional.embedding(mask.ids_mask, model.regressor.position),
        "positions_visible": nn.functional.embedding(mask.ids_keep, model.regressor.position),
    }
    deviations["the decoder's table"] = distance(model.decoder.position, model.regressor.position) / STORED_TABLE
    expected = {name: want for name, (want, _) in item.expected().items() if want is not None}
    table = torch.zeros_like(model.decoder.position).unsqueeze(0)
    for places, ids in (("positions_masked", mask.ids_mask), ("positions_visible", mask.ids_keep)):
        table = put_back(expected[places][:1], ids[:1], table)
    model.regressor.position = model.decoder.position = table[0]

    seen = _watch(model)
    result = model(Batch(images, total=len(images)), Draws(mask))
    result["loss"].backward()

    latent = model.encoder(images, mask.ids_keep)
    aligned = model.alignment_target(images, mask)
    outputs |= seen | {
        "visible_latents_with_cls": torch.cat([latent.prefix, latent.patches], dim=1),
        "regressor_visible_input": model.latents(model.encoder, images, mask.ids_keep),
        "alignment_target": aligned,
        "logits": seen["logits"].flatten(0, 1),
        "loss_main": result["loss_target"],
        "loss_align_weighted": model.align_weight * result["loss_align"],
        "loss_total": result["loss"],
        "loss_align_kld_variant_unweighted": _divergence(seen["latent_prediction"], aligned),
        "accuracy": result["accuracy"],
    }
    parameters = _official(model)
    outputs |= gradients("grad/", parameters)
    stated = item.numbers.get("pretraining_parameter_groups", [])
    groups = parameter_groups(model, decay_used(stated) if stated else 0.05)
    without = [name for name in weights if not name.startswith("teacher.")]
    numbers: dict[str, Any] = {
        "gradient_l2_norms": norms(parameters),
        "parameters_without_gradient": [n for n in without if n not in parameters or parameters[n].grad is None],
        "pretraining_parameter_groups": [_group(group, official_name) for group in groups],
    }
    model.update_ema(0)
    assert model.aligner is not None
    after = {f"teacher_after/{name}": tensor for name, tensor in model.aligner.copy.named_parameters()}
    outputs |= {name: after[name] for name in expected if name in after}
    for name, want in expected.items():  # the items' own tolerances make room for another table
        if want.is_floating_point() and name in outputs and not name.startswith("positions_"):
            scale = want.abs().max().item() or 1.0
            error = distance(outputs[name].reshape(want.shape), want)
            deviations[f"full precision/{name}"] = error / (RELATIVE * scale)
    return Computed(
        outputs,
        numbers,
        config={"layer_norm_eps": norm_eps(model), "align_loss_weight": model.align_weight},
        deviations=deviations | initialisation(item, lambda: _official(ours.build(target=tokens))),
    )


def trajectory(item: Item) -> Computed:
    """A run of the authors' `run_pretraining.py`, in either release: by its names, and by when the copy moves."""
    config, images, weights = item.config, item.input("images"), item.weights()
    release: Release = "lxtGH/CAE" if any(name.startswith("pretext_neck.") for name in weights) else "Atten4Vis/CAE"
    lagging, weight = config["alignment_weights"] == "one step before", float(config["align_loss_weight"])
    copied = lagging and weight > 0
    method = replace(
        _pretrain_config(item, images),
        align_weight=weight,
        align_momentum=float(config.get("base_momentum", 0.0)) if copied else None,
        align_lagging=copied,
    )
    tokens = PoolIds(item.input("token_ids"), config["vocab_size"], method.encoder.grid)
    model = method.build(target=TokenTarget(tokens)).double()

    def official(name: str) -> str:
        return name if name.startswith("aligner.ahead.") else official_name(name, release)

    fixed = {name for name in weights if name.endswith(UNUSED) and method.regressor.layer_scale is None}
    model.regressor.position = model.decoder.position = weights["rd_pos_embed"][0, 1:]
    learned = {our_name(n, release): t for n, t in weights.items() if n not in {*fixed, "rd_pos_embed"}}
    own = {name: t for name, t in model.state_dict().items() if name.startswith("aligner.")}
    load_exactly(model, learned | own, item.name)
    model.reset()

    def draws(tape: Tape) -> Draws:
        tokens.turn_to(tape)
        return Draws(tape.masked())

    config_of_run = run_config(item, method, schedule="beit")
    run = Run(config_of_run, model, Tape(item), draws, official).carry_out()
    aligned = run.curve("loss_align") * weight if weight else torch.zeros_like(run.curve("loss"))
    return run.computed({"loss_main": run.curve("loss_target"), "loss_align_weighted": aligned})


def finetune(item: Item) -> Computed:
    """The classifier with fixed positions, relative ones in every block and mean pooling, and its layer-wise groups."""
    images, labels = item.input("images"), item.input("labels")
    relative: RelativePosition = "blocks" if item.config["per_block_relative_bias"] else "none"
    encoder = _encoder_config(item, images, relative_position=relative).build()
    pool: Literal["mean", "class"] = "mean" if item.config["mean_pooling"] else "class"
    classifier = Classifier(encoder, item.config["num_classes"], pool, learn_positions=False).double().eval()
    built = None if encoder.pos_embed is None else encoder.pos_embed.detach().clone()
    weights = item.weights()
    stored = {name: tensor for name, tensor in weights.items() if name.endswith("relative_position_index")}
    load_exactly(classifier, {_classifier_name(n): t for n, t in weights.items() if n not in stored}, item.name)
    latent, logits = classifier.encoder(images), classifier(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    parameters = {
        name.removeprefix("encoder."): parameter
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad
    }
    found = {
        "logits": logits,
        "tokens_before_pooling": torch.cat([latent.prefix, latent.patches], dim=1),
        "cross_entropy": loss,
    }
    index = encoder.relative_index
    assert index is not None
    assert built is not None
    deviations = {f"state/{name}": 0.0 if torch.equal(index, tensor) else math.inf for name, tensor in stored.items()}
    return Computed(
        found | gradients("grad/", parameters),
        numbers={
            "gradient_l2_norms": norms(parameters),
            "trained_parameters": list(parameters),
            "layer_decay_groups": {
                decay: [
                    _group(group, lambda name: name.removeprefix("encoder."))
                    for group in layer_decay_groups(classifier, decay_used(groups), float(decay))
                ]
                for decay, groups in item.numbers.get("layer_decay_groups", {}).items()
            },
        },
        config={"layer_norm_eps": norm_eps(classifier)},
        deviations=deviations | {"state/pos_embed": distance(built, weights["pos_embed"]) / STORED_TABLE},
    )


def attentive_probe(item: Item) -> Computed:
    """The frozen encoder with the attentive head, by running statistics and by those of the batch."""
    images, labels, weights, config = item.input("images"), item.input("labels"), item.weights(), item.config
    encoder = _encoder_config(item, images).build().double().eval()
    head = AttentiveHead(config["embed_dim"], config["num_heads"], config["num_classes"]).double()
    batch_wise = AttentiveHead(
        config["embed_dim"], config["num_heads"], config["num_classes"], test_batch_statistics=True
    ).double()
    state = {name: t for name, t in weights.items() if not name.startswith(UNUSED_NORM)}
    theirs = {_head_name(name): tensor for name, tensor in state.items() if name.partition(".")[0] in HEAD_PARTS}
    load_exactly(head, theirs, item.name)
    load_exactly(batch_wise, theirs, item.name)
    load_exactly(encoder, {n: t for n, t in state.items() if n.partition(".")[0] not in HEAD_PARTS}, item.name)
    with torch.no_grad():
        latent = encoder(images)
        tokens = torch.cat([latent.prefix, latent.patches], dim=1)
        evaluated, official = head.eval()(tokens), batch_wise.eval()(tokens)
    trained = head.train()(tokens)
    loss = F.cross_entropy(trained, labels)
    loss.backward()
    parameters = {_official_head_name(name): parameter for name, parameter in head.named_parameters()}
    unused = {name: 0.0 for name in weights if name.startswith(UNUSED_NORM)}
    return Computed(
        {
            "logits_eval": evaluated,
            "logits_train": trained,
            "backbone_tokens_with_cls": tokens,
            "query_output": head.pool(tokens).unsqueeze(1),
            "running_mean_after": head.norm.running_mean,
            "running_var_after": head.norm.running_var,
            "cross_entropy": loss,
        }
        | gradients("grad/", parameters),
        numbers={
            "gradient_l2_norms": norms(parameters) | unused,
            "trained_parameters": [*parameters, *unused],
        },
        config={"layer_norm_eps": norm_eps(head)},
        # the official way to evaluate, by the batch at hand, gives what training gives
        deviations={"logits_train, in evaluation": distance(official, trained.detach()) / RELATIVE},
    )


# Of the official attentive probe: what is not the encoder, and a layer norm that nothing reads.
HEAD_PARTS = frozenset({"query_token", "attentive_blocks", "fc_norm", "head"})
BLOCK, UNUSED_NORM = "attentive_blocks.0.", "attentive_blocks.0.norm2_cross."


def _head_name(name: str) -> str:
    if name.startswith(BLOCK):
        rest = name.removeprefix(BLOCK)
        there, here = next(pair for pair in CROSS if rest.startswith(pair[0]))
        return here + rest.removeprefix(there)
    return name.replace("fc_norm.", "norm.")


def _official_head_name(name: str) -> str:
    for there, here in CROSS:
        if name.startswith(here):
            return BLOCK + there + name.removeprefix(here)
    return name


def _classifier_name(name: str) -> str:
    return name if name.partition(".")[0] in {"fc_norm", "head"} else f"encoder.{name}"


def _encoder_config(item: Item, images: Tensor, relative_position: RelativePosition = "none") -> EncoderConfig:
    config, channels = item.config, images.shape[1]
    return EncoderConfig(
        image_size=(images.shape[2], images.shape[3]),
        patch_size=config["patch_size"],
        in_chans=channels,
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=float(config["mlp_ratio"]),
        position="sincos_rows_first",
        relative_position=relative_position,
        attention_bias="qv",
        layer_scale=config["layer_scale_init"] or None,
        drop_path=float(config.get("drop_path", 0.0)),
        initialisation="beit" if config.get("fix_init_weight") else "cae",
        mean=(0.0,) * channels,  # the items' images are normalised already
        std=(1.0,) * channels,
    )


def _pretrain_config(item: Item, images: Tensor) -> CAEConfig:
    config, encoder = item.config, _encoder_config(item, images)
    scale, mlp_ratio = config["decoder_layer_scale_init"] or None, float(config["mlp_ratio"])
    return CAEConfig(
        encoder=encoder,
        regressor=RegressorConfig(
            width=config["decoder_embed_dim"],
            depth=config["regressor_depth"],
            heads=config["decoder_num_heads"],
            mlp_ratio=mlp_ratio,
            layer_scale=scale,
            drop_path=encoder.drop_path,
        ),
        decoder=LatentDecoderConfig(
            depth=config["decoder_depth"], mlp_ratio=mlp_ratio, layer_scale=scale, drop_path=encoder.drop_path
        ),
        masker=BlockMasker(ratio=config["num_mask_patches"] / (encoder.grid[0] * encoder.grid[1])),
        align_weight=float(config["align_loss_weight"]),
        align_momentum=float(config.get("base_momentum", 0.0)),
    )


def _watch(model: CAE) -> dict[str, Tensor]:
    """What modules say inside the next forward passes, under the names of the item."""
    seen: dict[str, Tensor] = {}
    watched: dict[str, nn.Module | None] = {
        f"regressor_block_{number}_output": block for number, block in enumerate(model.regressor.blocks)
    }
    watched |= {
        "latent_prediction": model.regressor,
        "logits": model.decoder,
        "decoder_tokens_after_norm": model.decoder.norm,
    }

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, _given, found: seen.update({name: found}))

    for name, module in watched.items():
        if module is not None:
            watch(name, module)
    return seen


def _divergence(predicted: Tensor, aligned: Tensor) -> Tensor:
    """The other alignment loss of the authors' code, which no recipe uses and `CAE` does not have."""
    return F.kl_div(predicted.log_softmax(-1), aligned.softmax(-1), reduction="none").mean()


def _official(model: CAE) -> dict[str, nn.Parameter]:
    """Parameters that the official code trains or keeps fixed, under its names; not those of the alignment branch."""
    named = model.named_parameters()
    return {official_name(name): p for name, p in named if not name.startswith("aligner.")}


def _group(group: Group, name: Callable[[str], str]) -> dict[str, Any]:
    return {
        "lr_scale": group["lr_scale"],
        "weight_decay": group["weight_decay"],
        "parameters": [name(own) for own in group["param_names"]],
    }
