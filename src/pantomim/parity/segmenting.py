"""Whole runs of segmentation by mmengine's Runner, through our engine, and their test by sliding windows.

Official: open-mmlab/mmsegmentation 1.2.2, the configs of MAE and BEiT.
"""

import re
from functools import partial

import torch
from torch import Tensor

from pantomim.config import Duration, Pretrain
from pantomim.core.scores import class_accuracy, count_pixels, intersection_over_union, pixel_accuracy
from pantomim.methods.segment import Segment, SegmentConfig
from pantomim.nn.pyramid import Pyramid
from pantomim.nn.segmenter import UPerNetConfig
from pantomim.nn.tokens import enlarge
from pantomim.nn.windows import sliding_logits
from pantomim.parity import networks
from pantomim.parity.beit import compare_indices, without_index
from pantomim.parity.item import Computed, Item
from pantomim.parity.segmentation import neck_name
from pantomim.parity.trajectory import Run, run_config


def trajectory_segment(item: Item) -> Computed:
    """A run of UPerNet on MAE's or BEiT's backbone, whichever the item's weights are of."""
    config, weights = item.config, without_index(item)
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
    networks.filled(item, model, names, weights, kept=("final_norm",))
    model.model.taps = tuple(config["out_indices"])
    run = Run(item, _settings(item, method), model, names, lambda tape: None).carry_out()
    logged = {
        "loss_decode": run.curve("loss_head"),
        "loss_auxiliary_weighted": run.curve("loss_auxiliary"),
        "accuracy_decode": 100 * run.curve("accuracy"),
        "accuracy_auxiliary": 100 * run.curve("accuracy_auxiliary"),
        "lr_groups": run.curve("group_lr"),
        "weight_decay_groups": run.curve("group_weight_decay"),
    }
    buffers = {f"final_buffers/{names(name)}": tensor for name, tensor in model.named_buffers()}
    found, counts = run.computed(logged | buffers), _test(item, model)
    found.outputs |= counts.outputs
    found.numbers |= counts.numbers
    found.numbers["ignored_share"] = {"labels": float((item.input("labels") == config["ignore_index"]).double().mean())}
    found.errors |= compare_indices(model.encoder, item)
    return found


@torch.no_grad()
def _test(item: Item, model: Segment) -> Computed:
    """Logits and predictions of whole images at their labels' size, and the pixels counted over all."""
    config, segmenter = item.config, model.model.eval()
    crop, stride = (config["img_size"],) * 2, (config["stride"],) * 2
    found: dict[str, Tensor] = {}
    counts = torch.zeros(3, config["num_classes"])
    for number in range(len(config["test_sizes"])):
        images, labels = item.input(f"test_image_{number}")[None], item.input(f"test_label_{number}").long()[None]
        fill = segmenter.encoder.mean.flatten()
        logits = sliding_logits(segmenter, images, config["num_classes"], crop, stride, fill)
        logits = enlarge(logits, labels.shape[1:])
        guesses, corner = logits.argmax(dim=1), config["corner"]
        found[f"test_logits_{number}"] = logits[0, :, -corner:, -corner:]
        found[f"test_prediction_{number}"] = guesses[0]
        counts += count_pixels(guesses, labels, config["num_classes"], ignore=config["ignore_index"]).sum(dim=0)
    hits, predicted, labelled = counts.long()
    iou = intersection_over_union(counts)
    found |= {"intersection": hits, "union": predicted + labelled - hits, "predicted": predicted, "labelled": labelled}
    shares = {"aAcc": pixel_accuracy(counts), "mIoU": iou.nanmean(), "mAcc": class_accuracy(counts).nanmean()}
    metrics = {name: round(100 * share.item(), 2) for name, share in shares.items()}
    return Computed(found | {"iou": iou.nan_to_num(-1)}, {"metrics": metrics})


def _settings(item: Item, method: SegmentConfig) -> Pretrain:
    config = item.config
    return run_config(
        item,
        method,
        warmup=Duration(steps=config["warmup_steps"]),
        start_lr=config["start_factor"] * config["lr"],
        layer_decay=config["layer_decay"],
        decay_tokens=True,
        schedule="poly",
    )


def _name(model: Segment, name: str) -> str:
    """Mmsegmentation's name of a parameter, buffer or module of a segmenter."""
    part, _, rest = name.removeprefix("model.").partition(".")
    if part == "neck":
        assert isinstance(model.model.neck, Pyramid)
        return f"neck.{neck_name(model.model.neck, rest)}"
    if part != "encoder":
        return {"head": "decode_head", "auxiliary": "auxiliary_head"}.get(part, part) + f".{rest}"
    for ours, theirs in (
        (r"^blocks\.", "layers."),
        (r"\.norm(\d)\.", r".ln\1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
    ):
        rest = re.sub(ours, theirs, rest)
    return f"backbone.{rest}"


ITEMS = (trajectory_segment,)
