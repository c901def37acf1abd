"""CAE: pre-training, whole runs, fine-tuning and the attentive probe. Official: lxtGH/CAE, Atten4Vis/CAE."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.cae import CROSS, Release, official_name
from pantomim.formats.files import load_exactly
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Draws
from pantomim.methods.cae import CAE, CAEConfig
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.heads import AttentiveHead, Classifier
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.tokens import put_back
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import parameter_groups
from pantomim.parity import networks
from pantomim.parity.beit import classifier_name, compare_indices, without_index
from pantomim.parity.compare import RELATIVE, distance
from pantomim.parity.initialisation import initialisation
from pantomim.parity.item import Computed, Item
from pantomim.parity.mae import STORED_TABLE, classified
from pantomim.parity.trajectory import GivenIds, Run, Tape, run_config
from pantomim.targets.tokens import TokenTarget

UNUSED = ("gamma_1_cross", "gamma_2_cross")  # official parameters that stay 1 where there are no scales
TABLE = "rd_pos_embed"  # of regressor and decoder; ours is no parameter


def pretrain(item: Item) -> Computed:
    """Encoder, alignment branch, regressor, decoder, losses and every gradient.

    The official code makes the table of the regressor and the decoder in float32; ours, as built, is compared, and the
    stored one is used for everything behind it, so that it can be compared to full precision.
    """
    images, masked, config, weights = item.input("images"), item.tensors["in/mask"], item.config, item.weights()
    weight = float(config["align_loss_weight"])  # 0 turns the loss off; the branch is compared all the same
    ours = replace(_config(item), align_weight=weight or 1.0, align_momentum=float(config.get("base_momentum", 0.0)))
    mask = Mask.from_masked(masked, config["num_mask_patches"])
    if not torch.equal(mask.masked, torch.zeros_like(masked).scatter_(1, mask.ids_mask, True)):
        raise ValueError(f"{item.name}: every image must have {config['num_mask_patches']} masked patches")
    ids = torch.zeros_like(masked, dtype=torch.long)
    ids[masked] = item.input("labels")  # image by image, in raster order
    tokens = TokenTarget(GivenIds(ids, config["vocab_size"], ours.encoder.grid))
    model = ours.build(target=tokens).double()
    built = model.encoder.pos_embed
    assert built is not None
    deviations = {"state/encoder.pos_embed": distance(built, weights["encoder.pos_embed"]) / STORED_TABLE}
    deviations |= _fill(model, item)

    outputs = {
        "positions_masked": F.embedding(mask.ids_mask, model.regressor.position),
        "positions_visible": F.embedding(mask.ids_keep, model.regressor.position),
    }
    deviations["the decoder's table"] = distance(model.decoder.position, model.regressor.position) / STORED_TABLE
    expected = {name: want for name, (want, _) in item.expected().items() if want is not None}
    if outputs.keys() <= expected.keys():
        table = torch.zeros_like(model.decoder.position).unsqueeze(0)
        for places, chosen in (("positions_masked", mask.ids_mask), ("positions_visible", mask.ids_keep)):
            table = put_back(expected[places][:1], chosen[:1], table)
        model.regressor.position = model.decoder.position = table[0]

    seen = _watch(model)
    result = model(Batch(images, total=len(images)), Draws(mask))
    loss = result["loss"] if weight else result["loss_target"]
    gradients, gradient_norms = networks.backward(loss, model, official_name)
    aligned = model.alignment_target(images, mask)
    outputs |= gradients | seen
    outputs |= {
        "visible_latents_with_cls": networks.joined(model.encoder(images, mask.ids_keep)),
        "regressor_visible_input": model.latents(model.encoder, images, mask.ids_keep),
        "alignment_target": aligned,
        "logits": seen["logits"].flatten(0, 1),
        "loss_main": result["loss_target"],
        "loss_align_weighted": weight * result["loss_align"],
        "loss_total": loss,
        # the other alignment loss of the authors' code, which no recipe uses and `CAE` does not have
        "loss_align_kld_variant_unweighted": F.kl_div(
            seen["latent_prediction"].log_softmax(-1), aligned.softmax(-1), reduction="none"
        ).mean(),
        "accuracy": result["accuracy"],
    }
    decay = networks.decay_used(item.numbers.get("pretraining_parameter_groups", []))
    numbers: dict[str, Any] = {
        "gradient_l2_norms": gradient_norms,
        "parameters_without_gradient": [
            name for name in weights if name not in gradient_norms and not name.startswith("teacher.")
        ],
        "pretraining_parameter_groups": networks.described(parameter_groups(model, decay), official_name),
    }
    model.update_ema(0)
    after = model.get_submodule("aligner.copy").named_parameters()
    outputs |= {f"teacher_after/{name}": tensor for name, tensor in after}
    for name, want in expected.items():  # the items' own tolerances make room for another table
        if want.is_floating_point() and name in outputs and not name.startswith("positions_"):
            scale = want.abs().max().item() or 1.0
            error = distance(outputs[name].reshape(want.shape), want)
            deviations[f"full precision/{name}"] = error / (RELATIVE * scale)
    return Computed(
        outputs,
        numbers,
        config=networks.norm_eps(model),
        deviations=deviations | initialisation(item, lambda: networks.named(ours.build(target=tokens), official_name)),
    )


def trajectory(item: Item) -> Computed:
    """A run of the authors' `run_pretraining.py`, in either release: by its names, and by when the copy moves."""
    config, weights, weight = item.config, item.weights(), float(item.config["align_loss_weight"])
    release: Release = "lxtGH/CAE" if any(name.startswith("pretext_neck.") for name in weights) else "Atten4Vis/CAE"
    lagging = config["alignment_weights"] == "one step before" and weight > 0
    momentum = float(config.get("base_momentum", 0.0)) if lagging else None
    method = replace(_config(item), align_weight=weight, align_momentum=momentum, align_lagging=lagging)
    tokens = GivenIds(item.input("token_ids"), config["vocab_size"], method.encoder.grid)
    model = method.build(target=TokenTarget(tokens)).double()
    _fill(model, item, release, kept=("aligner.",))
    model.regressor.position = model.decoder.position = weights[TABLE][0, 1:]
    model.reset()

    def draws(tape: Tape) -> Draws:
        tokens.turn_to(tape)
        return Draws(tape.mask())

    run = Run(run_config(item, method, schedule="beit"), model, Tape(item), draws, _names(release)).carry_out()
    aligned = weight * run.curve("loss_align")
    return run.computed({"loss_main": run.curve("loss_target"), "loss_align_weighted": aligned})


def finetune(item: Item) -> Computed:
    """The classifier with fixed positions, relative ones in every block and mean pooling, and its layer-wise groups."""
    config, weights = item.config, item.weights()
    encoder = cae_encoder(item, relative_position="blocks" if config["per_block_relative_bias"] else "none").build()
    pool: Literal["mean", "class"] = "mean" if config["mean_pooling"] else "class"
    classifier = Classifier(encoder, config["num_classes"], pool, learn_positions=False).double().eval()
    assert encoder.pos_embed is not None
    table = distance(encoder.pos_embed.detach(), weights["pos_embed"]) / STORED_TABLE
    networks.fill(classifier, without_index(weights), classifier_name, item.name)
    outputs, numbers = classified(item, classifier, classifier_name)
    trained = [classifier_name(name) for name, weight in classifier.named_parameters() if weight.requires_grad]
    return Computed(
        outputs | {"tokens_before_pooling": networks.joined(encoder(item.input("images")))},
        numbers=numbers | {"trained_parameters": trained},
        config=networks.norm_eps(classifier),
        deviations=compare_indices(encoder, item) | {"state/pos_embed": table},
    )


def attentive_probe(item: Item) -> Computed:
    """The frozen encoder with the attentive head, by running statistics and by those of the batch."""
    images, config = item.input("images"), item.config
    encoder, sizes = cae_encoder(item).build().double().eval(), (config["embed_dim"], config["num_heads"])
    head = AttentiveHead(*sizes, config["num_classes"]).double()
    batch_wise = AttentiveHead(*sizes, config["num_classes"], test_batch_statistics=True).double()
    unused = {name: 0.0 for name in item.weights() if name.startswith(UNUSED_NORM)}
    state = {name: tensor for name, tensor in item.weights().items() if name not in unused}
    for_head = {name: tensor for name, tensor in state.items() if name.partition(".")[0] in HEAD_PARTS}
    networks.fill(head, for_head, head_name, item.name)
    networks.fill(batch_wise, for_head, head_name, item.name)
    load_exactly(encoder, {name: tensor for name, tensor in state.items() if name not in for_head}, item.name)
    with torch.no_grad():
        tokens = networks.joined(encoder(images))
        evaluated, official = head.eval()(tokens), batch_wise.eval()(tokens)
    trained = head.train()(tokens)
    loss = F.cross_entropy(trained, item.input("labels"))
    gradients, gradient_norms = networks.backward(loss, head, head_name)
    return Computed(
        gradients
        | {
            "logits_eval": evaluated,
            "logits_train": trained,
            "backbone_tokens_with_cls": tokens,
            "query_output": head.pool(tokens).unsqueeze(1),
            "running_mean_after": head.norm.running_mean,
            "running_var_after": head.norm.running_var,
            "cross_entropy": loss,
        },
        numbers={
            "gradient_l2_norms": gradient_norms | unused,
            "trained_parameters": [*networks.named(head, head_name), *unused],
        },
        config=networks.norm_eps(head),
        # the official way to evaluate, by the batch at hand, gives what training gives
        deviations={"logits_train, in evaluation": distance(official, trained.detach()) / RELATIVE},
    )


# Of the official attentive probe: what is not the encoder, and a layer norm that nothing reads.
HEAD_PARTS = frozenset({"query_token", "attentive_blocks", "fc_norm", "head"})
BLOCK, UNUSED_NORM = "attentive_blocks.0.", "attentive_blocks.0.norm2_cross."


def head_name(name: str) -> str:
    """The authors' name of a parameter or buffer of an attentive head."""
    for there, here in CROSS:
        if name.startswith(here):
            return BLOCK + there + name.removeprefix(here)
    return name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name


def cae_encoder(item: Item, **settings: Any) -> EncoderConfig:
    """CAE's encoder of the sizes that an item states."""
    config = item.config
    return networks.encoder_config(
        config,
        item.input("images"),
        position="sincos_rows_first",
        attention_bias="qv",
        layer_scale=config["layer_scale_init"] or None,
        initialisation="beit" if config.get("fix_init_weight") else "cae",
        **settings,
    )


def _config(item: Item) -> CAEConfig:
    config, encoder = item.config, cae_encoder(item)
    shared: dict[str, Any] = {
        "mlp_ratio": float(config["mlp_ratio"]),
        "layer_scale": config["decoder_layer_scale_init"] or None,
        "drop_path": encoder.drop_path,
    }
    return CAEConfig(
        encoder=encoder,
        regressor=RegressorConfig(
            width=config["decoder_embed_dim"],
            depth=config["regressor_depth"],
            heads=config["decoder_num_heads"],
            **shared,
        ),
        decoder=LatentDecoderConfig(depth=config["decoder_depth"], **shared),
        masker=BlockMasker(ratio=config["num_mask_patches"] / (encoder.grid[0] * encoder.grid[1])),
    )


def _names(release: Release) -> networks.Names:
    """A release's name of each parameter and module; what no release has keeps ours."""
    return lambda name: name if name.startswith("aligner.ahead.") else official_name(name, release)


def _fill(model: CAE, item: Item, release: Release = "lxtGH/CAE", kept: tuple[str, ...] = ()) -> dict[str, float]:
    """Load an item's weights; what has no place in our model must be 1, as in the authors' code without scales."""
    weights, names = item.weights(), _names(release)
    there = {names(name) for name in model.state_dict()}
    fixed = {name: tensor for name, tensor in weights.items() if name.endswith(UNUSED) and name not in there}
    networks.fill(model, {n: t for n, t in weights.items() if n not in {*fixed, TABLE}}, names, item.name, kept)
    return {f"state/{name}": 0.0 if (tensor == 1).all() else math.inf for name, tensor in fixed.items()}


def _watch(model: CAE) -> dict[str, Tensor]:
    """Outputs of modules inside the next forward passes, under the names of the item."""
    seen: dict[str, Tensor] = {}
    watched: dict[str, nn.Module | None] = {
        f"regressor_block_{number}_output": block for number, block in enumerate(model.regressor.blocks)
    }
    watched |= {
        "latent_prediction": model.regressor,
        "logits": model.decoder,
        "decoder_tokens_after_norm": model.decoder.norm,
    }
    for name, module in watched.items():
        if module is not None:
            module.register_forward_hook(lambda _, __, found, name=name: seen.update({name: found}))
    return seen


ITEMS = {
    "cae_pretrain": pretrain,
    "cae_finetune": finetune,
    "cae_attentive_probe": attentive_probe,
    "trajectory_cae": trajectory,  # of either release: trajectory_cae_lagging is one of them
}
