"""Whole runs of segmentation by mmengine's Runner, through our engine, and their test by sliding windows.

Official: open-mmlab/mmsegmentation 1.2.2, the configs of MAE and BEiT.
"""

import re
from functools import partial

import torch
from torch import Tensor

from pantomim.config import Duration
from pantomim.core.scores import means, tally
from pantomim.methods.segment import Segment, SegmentConfig
from pantomim.nn.segmenter import UPerNetConfig
from pantomim.nn.tokens import enlarge
from pantomim.nn.windows import sliding_logits
from pantomim.parity import networks
from pantomim.parity.item import Computed, Item
from pantomim.parity.segmentation import PARTS, counted, neck_name
from pantomim.parity.trajectory import Run


def trajectory_segment(item: Item) -> Computed:
    """A run of UPerNet on MAE's or BEiT's backbone, whichever the item's weights are of."""
    config, weights = item.config, item.weights()
    absolute, qkv = "backbone.pos_embed" in weights, "backbone.layers.0.attn.qkv.bias" in weights
    method = SegmentConfig(
        encoder=networks.encoder_config(
            item,
            image_size=(config["img_size"], config["img_size"]),
            position="learned" if absolute else "none",
            relative_position="blocks",
            attention_bias="qkv" if qkv else "qv",
            layer_scale=config["init_values"] or None,
        ),
        num_classes=config["num_classes"],
        head=UPerNetConfig(
            channels=config["channels"],
            pool_scales=tuple(config["pool_scales"]),
            auxiliary_channels=config["auxiliary_channels"],
            auxiliary_weight=config["auxiliary_weight"],
            dropout=config["dropout_ratio"],
        ),
    )
    model = method.build()
    names = partial(_name, model)
    model.model.taps = tuple(config["out_indices"])
    run = Run(
        item,
        method,
        model,
        names,
        kept=("final_norm",),
        warmup=Duration(steps=config["warmup_steps"]),
        start_lr=config["start_factor"] * config["lr"],
        layer_decay=config["layer_decay"],
        decay_tokens=True,
        schedule="poly",
    ).carry_out()
    logged = {
        "loss_decode": run.curve("loss_head"),
        "loss_auxiliary_weighted": run.curve("loss_auxiliary"),
        "accuracy_decode": 100 * run.curve("accuracy"),
        "accuracy_auxiliary": 100 * run.curve("accuracy_auxiliary"),
        "lr_groups": run.curve("group_lr"),
        "weight_decay_groups": run.curve("group_weight_decay"),
    }
    buffers = {f"final_buffers/{names(name)}": tensor for name, tensor in model.named_buffers()}
    tested, counts = _test(item, model)
    scores = {"aAcc": "pixel_accuracy", "mIoU": "miou", "mAcc": "mean_accuracy"}
    found = run.computed(logged | buffers | tested | counted(counts))
    found.numbers["metrics"] = {name: round(100 * means(counts)[ours], 2) for name, ours in scores.items()}
    found.numbers["ignored_share"] = {"labels": float((item.input("labels") == config["ignore_index"]).double().mean())}
    return found


@torch.no_grad()
def _test(item: Item, model: Segment) -> tuple[dict[str, Tensor], Tensor]:
    """Logits and predictions of whole images at their labels' size, and the pixels counted over all."""
    config, segmenter = item.config, model.model.eval()
    crop, stride = (config["img_size"],) * 2, (config["stride"],) * 2
    found: dict[str, Tensor] = {}
    counts = torch.zeros(3, config["num_classes"], dtype=torch.long)
    for number in range(len(config["test_sizes"])):
        images, labels = item.input(f"test_image_{number}")[None], item.input(f"test_label_{number}").long()[None]
        fill = segmenter.encoder.mean.flatten()
        logits = sliding_logits(segmenter, images, config["num_classes"], crop, stride, fill)
        logits = enlarge(logits, labels.shape[1:])
        guesses, corner = logits.argmax(dim=1), config["corner"]
        found[f"test_logits_{number}"] = logits[0, :, -corner:, -corner:]
        found[f"test_prediction_{number}"] = guesses[0]
        counts += tally(guesses, labels, config["num_classes"], ignore=config["ignore_index"]).sum(dim=0)
    return found, counts


def _name(model: Segment, name: str) -> str:
    """Mmsegmentation's name of a parameter, buffer or module of a segmenter."""
    part, _, rest = name.removeprefix("model.").partition(".")
    if part == "neck":
        return f"neck.{neck_name(model.model.neck, rest)}"
    if part != "encoder":
        return f"{PARTS.get(part, part)}.{rest}"
    for ours, theirs in (
        (r"^blocks\.", "layers."),
        (r"\.norm(\d)\.", r".ln\1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
    ):
        rest = re.sub(ours, theirs, rest)
    return f"{PARTS[part]}.{rest}"


ITEMS = (trajectory_segment,)
