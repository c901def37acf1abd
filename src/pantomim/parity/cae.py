"""CAE: pre-training, whole runs, fine-tuning and the attentive probe. Official: lxtGH/CAE, Atten4Vis/CAE."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.mask import Mask
from pantomim.formats.cae import CROSS, Release, official_name
from pantomim.masking.block import BlockMasker
from pantomim.methods.base import Draws
from pantomim.methods.cae import CAE, CAEConfig
from pantomim.nn.decoder import LatentDecoderConfig
from pantomim.nn.heads import AttentiveHead
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import parameter_groups
from pantomim.parity import networks
from pantomim.parity.beit import block_classifier
from pantomim.parity.item import RELATIVE, Computed, Item, distance, exact
from pantomim.parity.statistics import initialisation
from pantomim.parity.trajectory import GivenIds, Run
from pantomim.targets.tokens import TokenTarget

UNUSED = ("gamma_1_cross", "gamma_2_cross")  # official parameters that stay 1 where there are no scales
TABLE = "rd_pos_embed"  # of regressor and decoder; ours is no parameter
# Of the official attentive probe: what is not the encoder, and a layer norm that nothing reads.
HEAD_PARTS = frozenset({"query_token", "attentive_blocks", "fc_norm", "head"})
BLOCK, UNUSED_NORM = "attentive_blocks.0.", "attentive_blocks.0.norm2_cross."


def cae_pretrain(item: Item) -> Computed:
    """Encoder, alignment branch, regressor, decoder, losses and every gradient.

    The official code makes the table of the regressor and the decoder in float32; ours, as built, is compared, and the
    stored one is used for everything behind it, so that it can be compared to full precision.
    """
    images, masked, config, weights = item.input("images"), item.input("mask"), item.config, item.weights()
    weight = float(config["align_loss_weight"])  # 0 turns the loss off; the branch is compared all the same
    method = replace(_config(item), align_weight=weight or 1.0, align_momentum=float(config.get("base_momentum", 0.0)))
    mask = Mask.from_masked(masked, config["num_mask_patches"])
    if not torch.equal(mask.masked, torch.zeros_like(masked).scatter_(1, mask.ids_mask, True)):
        raise ValueError(f"{item.name}: every image must have {config['num_mask_patches']} masked patches.")
    ids = torch.zeros_like(masked, dtype=torch.long)
    ids[masked] = item.input("labels")  # image by image, in raster order
    target = TokenTarget(GivenIds(item, ids, method.encoder.grid))
    model = method.build(target=target).double()
    regressor, decoder = model.regressor, model.decoder
    errors = {
        "state/encoder.pos_embed": networks.off_table(model.encoder.pos_embed, weights["encoder.pos_embed"]),
        "the decoder's table": networks.off_table(decoder.position, regressor.position),
    }
    fixed, ours = _placed(model, item)
    networks.filled(item, model, _names(), ours)
    errors |= {f"state/{name}": exact(bool((tensor == 1).all())) for name, tensor in fixed.items()}
    errors |= initialisation(item, lambda: method.build(target=target), official_name)
    chosen = {"positions_masked": mask.ids_mask, "positions_visible": mask.ids_keep}
    outputs = {name: F.embedding(ids, regressor.position) for name, ids in chosen.items()}
    stored = [table[0].double() for name in chosen if (table := item.output(name)) is not None]
    if len(stored) == len(chosen):
        in_raster_order = torch.cat([ids[0] for ids in chosen.values()]).argsort()
        regressor.position = decoder.position = torch.cat(stored)[in_raster_order]

    watched = {f"regressor_block_{number}_output": block for number, block in enumerate(regressor.blocks)}
    watched |= {"latent_prediction": regressor, "logits": decoder}
    if decoder.norm is not None:
        watched["decoder_tokens_after_norm"] = decoder.norm
    seen = networks.watch(watched)
    result = model(networks.batch(item), Draws(mask))
    loss = result["loss"] if weight else result["loss_target"]
    found = networks.backward(item, loss, model, official_name)
    aligned, predicted = model.alignment_target(images, mask), seen["latent_prediction"].log_softmax(-1)
    found.outputs |= outputs | seen
    found.outputs |= {
        "visible_latents_with_cls": networks.joined(model.encoder(images, mask.ids_keep)),
        "regressor_visible_input": model.latents(model.encoder, images, mask.ids_keep),
        "alignment_target": aligned,
        "logits": seen["logits"].flatten(0, 1),
        "loss_main": result["loss_target"],
        "loss_align_weighted": weight * result["loss_align"],
        "loss_total": loss,
        # the other alignment loss of the authors' code, which no recipe uses and `CAE` does not have
        "loss_align_kld_variant_unweighted": F.kl_div(predicted, aligned.softmax(-1), reduction="none").mean(),
        "accuracy": result["accuracy"],
    }
    trained = found.numbers["gradient_l2_norms"]
    untrained = [name for name in weights if name not in trained and not name.startswith("teacher.")]
    decay = networks.decay_used(item.numbers.get("pretraining_parameter_groups", []))
    groups = networks.described(parameter_groups(model, decay), official_name)
    found.numbers |= {"parameters_without_gradient": untrained, "pretraining_parameter_groups": groups}
    model.update_ema(0)
    after = model.get_submodule("aligner.copy").named_parameters()
    found.outputs |= {f"teacher_after/{name}": tensor for name, tensor in after}
    found.errors = errors | _full_precision(item, found.outputs)
    return found


def _full_precision(item: Item, outputs: dict[str, Tensor]) -> dict[str, float]:
    """Every output again: the item's own tolerances make room for another table."""
    errors = {}
    for name, ours in outputs.items():
        target = item.output(name)
        if target is not None and target.is_floating_point() and not name.startswith("positions_"):
            scale = target.abs().max().item() or 1.0
            error = distance(ours.reshape(target.shape), target.double())
            errors[f"full precision/{name}"] = error / (RELATIVE * scale)
    return errors


def trajectory_cae(item: Item) -> Computed:
    """A run of the authors' `run_pretraining.py`, in either release: by its names, and by when the copy moves."""
    config, weights, weight = item.config, item.weights(), float(item.config["align_loss_weight"])
    release: Release = "lxtGH/CAE" if any(name.startswith("pretext_neck.") for name in weights) else "Atten4Vis/CAE"
    lagging = config["alignment_weights"] == "one step before" and weight > 0
    momentum = float(config.get("base_momentum", 0.0)) if lagging else None
    method = replace(_config(item), align_weight=weight, align_momentum=momentum, align_lagging=lagging)
    tokens = GivenIds(item, item.input("token_ids"), method.encoder.grid)
    model = method.build(target=TokenTarget(tokens))
    model.regressor.position = model.decoder.position = weights[TABLE][0, 1:]
    _, ours = _placed(model, item, release)
    run = Run(item, method, model, _names(release), weights=ours, kept=("aligner.",), schedule="beit").carry_out()
    aligned = weight * run.curve("loss_align")
    return run.computed({"loss_main": run.curve("loss_target"), "loss_align_weighted": aligned})


def cae_finetune(item: Item) -> Computed:
    """The classifier with fixed positions, relative ones in every block and mean pooling, and its layer-wise groups."""
    found, encoder = block_classifier(item, cae_encoder, learn_positions=False)
    built = cae_encoder(item).build().double().pos_embed
    found.errors["state/pos_embed"] = networks.off_table(built, item.weights()["pos_embed"])
    found.outputs["tokens_before_pooling"] = networks.joined(encoder(item.input("images")))
    return found


def cae_attentive_probe(item: Item) -> Computed:
    """The frozen encoder with the attentive head, by running statistics and by those of the batch."""
    width, heads, classes = (item.config[name] for name in ("embed_dim", "num_heads", "num_classes"))
    unused = {name: 0.0 for name in item.weights() if name.startswith(UNUSED_NORM)}
    state = {name: tensor for name, tensor in item.weights().items() if name not in unused}
    for_head = {name: tensor for name, tensor in state.items() if name.partition(".")[0] in HEAD_PARTS}
    head = networks.filled(item, AttentiveHead(width, heads, classes), head_name, for_head)
    batch_wise = networks.filled(item, AttentiveHead(width, heads, classes, True), head_name, for_head)
    rest = {name: tensor for name, tensor in state.items() if name not in for_head}
    encoder = networks.filled(item, cae_encoder(item).build(), str, rest).eval()
    with torch.no_grad():
        tokens = networks.joined(encoder(item.input("images")))
        evaluated, official = head.eval()(tokens), batch_wise.eval()(tokens)
    trained = head.train()(tokens)
    loss = F.cross_entropy(trained, item.input("labels"))
    found = networks.backward(item, loss, head, head_name)
    found.outputs |= {
        "logits_eval": evaluated,
        "logits_train": trained,
        "backbone_tokens_with_cls": tokens,
        "query_output": head.pool(tokens).unsqueeze(1),
        "running_mean_after": head.norm.get_buffer("running_mean"),
        "running_var_after": head.norm.get_buffer("running_var"),
        "cross_entropy": loss,
    }
    found.numbers["gradient_l2_norms"] |= unused
    found.numbers["trained_parameters"] = [*(head_name(name) for name, _ in head.named_parameters()), *unused]
    # the official way to evaluate, by the batch at hand, gives what training gives
    found.errors["logits_train, in evaluation"] = distance(official, trained) / RELATIVE
    return found


def head_name(name: str) -> str:
    """The authors' name of a parameter or buffer of an attentive head."""
    for there, here in CROSS:
        if name.startswith(here):
            return BLOCK + there + name.removeprefix(here)
    return name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name


def cae_encoder(item: Item, **settings: Any) -> EncoderConfig:
    """CAE's encoder of the sizes that an item states."""
    settings |= {"position": "sincos_rows_first", "attention_bias": "qv"}
    settings |= {"initialisation": "beit" if item.config.get("fix_init_weight") else "cae"}
    return networks.encoder_config(item, layer_scale=item.config["layer_scale_init"] or None, **settings)


def _config(item: Item) -> CAEConfig:
    config, encoder = item.config, cae_encoder(item)
    shared: dict[str, Any] = {
        "mlp_ratio": float(config["mlp_ratio"]),
        "layer_scale": config["decoder_layer_scale_init"] or None,
        "drop_path": encoder.drop_path,
    }
    width, depth, heads = (config[name] for name in ("decoder_embed_dim", "regressor_depth", "decoder_num_heads"))
    return CAEConfig(
        encoder=encoder,
        regressor=RegressorConfig(width=width, depth=depth, heads=heads, **shared),
        decoder=LatentDecoderConfig(depth=config["decoder_depth"], **shared),
        masker=BlockMasker(ratio=config["num_mask_patches"] / (encoder.grid[0] * encoder.grid[1])),
    )


def _names(release: Release = "lxtGH/CAE") -> networks.Names:
    """A release's name of each parameter and module; what no release has keeps ours."""
    return lambda name: name if name.startswith("aligner.ahead.") else official_name(name, release)


def _placed(model: CAE, item: Item, release: Release = "lxtGH/CAE") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights without a place in our model, which must be 1, as in the authors' code without scales; and the others."""
    weights, names = item.weights(), _names(release)
    there = {names(name) for name in model.state_dict()}
    fixed = {name: tensor for name, tensor in weights.items() if name.endswith(UNUSED) and name not in there}
    return fixed, {name: tensor for name, tensor in weights.items() if name not in {*fixed, TABLE}}
