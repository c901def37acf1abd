"""Semantic segmentation: backbones, pyramid, UPerNet, windows, scores, groups and rates, sizes, crops; whole runs.

Official: lxtGH/CAE, liuxingbin/dbot, microsoft/unilm, open-mmlab/mmsegmentation 1.2.2 (also its Runner, with the
configs of MAE and BEiT) and 0.11.
"""

import re
from collections.abc import Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.config import Duration
from pantomim.core.scores import class_accuracy, count_pixels, intersection_over_union, means, pixel_accuracy
from pantomim.data.distortion import Distortion, distorted
from pantomim.data.mask_crops import class_counts, crop_place
from pantomim.data.transforms import fitted_size
from pantomim.formats.mmpretrain import mmpretrain_name
from pantomim.methods.segment import Segment, SegmentConfig
from pantomim.nn.blocks import drop_path_rates
from pantomim.nn.pyramid import Pyramid
from pantomim.nn.resize import resample, resample_stretched
from pantomim.nn.segmenter import AUXILIARY_LEVEL, Segmenter, UPerNetConfig, pixel_loss
from pantomim.nn.tokens import enlarge
from pantomim.nn.upernet import ConvNorm, FCNHead, UPerHead, score_layer
from pantomim.nn.vit import EncoderConfig, Features
from pantomim.nn.windows import sliding_logits, window_starts
from pantomim.optim import Schedule, layer_scale, parameter_groups
from pantomim.parity import networks
from pantomim.parity.item import Computed, Item, distance
from pantomim.parity.mae import FLOAT32
from pantomim.parity.recorded import Recorded
from pantomim.parity.trajectory import Run

STEPS, WARMUP, START = 160_000, 1_500, 1e-6  # of the recipes for ADE20K; the first rate as a share of the peak
PARTS = {"encoder": "backbone", "neck": "backbone", "head": "decode_head", "auxiliary": "auxiliary_head"}
LEVELS = 3  # of 255: what OpenCV's vector code may differ by, as the items note
SHORT_ROW = 16  # below so many pixels a row, OpenCV's code is the scalar one, which rounds as we do
SCHEDULES = {"segmentation_poly_old": Schedule.mmcv, "segmentation_poly_new": Schedule.poly}


def downstream_seg_backbone(item: Item) -> Computed:
    """Taps and the maps made of them by running statistics, those of the batch, and every gradient."""
    weights, images, outputs = item.weights(), item.input("images"), dict[str, Tensor]()
    fixed = "pos_embed" in weights and not item.config["use_abs_pos_emb"]  # CAE's stays as it is
    position = "sincos_rows_first" if fixed else "learned" if item.config["use_abs_pos_emb"] else "none"
    encoder = _encoder(item, position).build()
    norm, model = encoder.norm, Segmenter(encoder, 1, UPerNetConfig())
    errors = {"state/pos_embed": networks.off_table(encoder.pos_embed, weights["pos_embed"])} if fixed else {}
    model.taps, model.head, model.auxiliary = tuple(item.config["out_indices"]), nn.Identity(), None
    if item.config.get("out_with_norm"):
        encoder.norm = norm
    networks.filled(item, model, _backbone_name).eval()
    taps = model.tap(images)
    for number, (tap, level) in enumerate(zip(taps, model.neck(taps), strict=True)):
        outputs |= {f"tap_{number}": networks.joined(tap), f"eval/level_{number}": level}
    levels = model.neck(model.train().tap(images))
    loss = torch.stack([(level * item.input(f"cotangent_{k}")).sum() for k, level in enumerate(levels)]).sum()
    found = networks.backward(item, loss, model, _backbone_name)
    found.outputs |= outputs | {f"train/level_{number}": level for number, level in enumerate(levels)}
    found.outputs |= {"train/loss": loss} | _statistics(model, _backbone_name)
    found.errors |= errors
    return found


def downstream_pyramid(item: Item) -> Computed:
    """The pyramid of every patch size that the item has, from four given maps."""
    found, given = Computed(), item.spec["inputs"]["tensors"]
    for patch in sorted({name.partition("/")[0] for name in given}):
        taps = [item.input(f"{patch}/tap_{number}") for number in range(4)]
        _, width, *grid = taps[0].shape
        pyramid = Pyramid(width, int(patch.removeprefix("patch")), (grid[0], grid[1]))
        networks.filled(item, pyramid, partial(_neck_name, pyramid), item.weights(f"state/{patch}/"))
        levels = pyramid.eval()([Features(tap.new_zeros(len(tap), 0, width), tap.flatten(2).mT) for tap in taps])
        found.outputs |= {f"{patch}/level_{number}": level for number, level in enumerate(levels)}
    return found


def downstream_upernet(item: Item) -> Computed:
    """Both heads on given maps: logits, losses in which ignored pixels count, accuracy, gradients, statistics."""
    config, labels, ignore = item.config, item.input("labels"), item.config["ignore_index"]
    width, classes, dropout = config["in_channels"], config["num_classes"], float(config["dropout"])
    head = UPerHead(width, config["channels"], classes, tuple(config["pool_scales"]), dropout)
    heads = nn.ModuleDict({"head": head, "aux": FCNHead(width, config["aux_channels"], classes, dropout)})
    parts = {f"{part}/{name}": tensor for part in heads for name, tensor in item.weights(f"{part}/").items()}
    networks.filled(item, heads, _by_part, parts)
    maps = [item.input(f"feature_{number}").requires_grad_() for number in range(4)]
    outputs, errors = dict[str, Tensor](), dict[str, float]()
    for mode in ("eval", "train"):
        heads.train(mode == "train")
        logits = {"": heads["head"](maps), "aux_": heads["aux"](maps[AUXILIARY_LEVEL])}
        outputs |= {f"{mode}/{name}logits": tensor for name, tensor in logits.items()}
    losses = {name: pixel_loss(tensor, labels, ignore)[0] for name, tensor in logits.items()}
    weighted = {"loss": losses[""], "aux_loss": config["aux_weight"] * losses["aux_"]}
    total = weighted["loss"] + weighted["aux_loss"]
    step = networks.backward(item, total, heads, _by_part)
    outputs |= {name.replace("grad/", "grad_"): tensor for name, tensor in step.outputs.items()}
    outputs |= {f"grad_feature/{number}": level.grad for number, level in enumerate(maps) if level.grad is not None}
    share = (labels != ignore).double().mean()
    outputs |= weighted | {"total": total, "loss_mean_over_counted_pixels": losses[""] / share}
    for name, tensor in logits.items():
        guesses = enlarge(tensor, labels.shape[1:]).argmax(dim=1)
        counts = count_pixels(guesses, labels, classes, ignore=ignore).sum(dim=0)
        if (stated := item.output(f"{name}accuracy")) is not None:  # per cent, in float32
            off = distance(100 * pixel_accuracy(counts).reshape(stated.shape), stated.double())
            errors[f"{name}accuracy"] = off / (FLOAT32 * 100)
    config_of_ours = step.config | {"align_corners": False}
    return Computed(outputs | _statistics(heads, _by_part), step.numbers, config=config_of_ours, errors=errors)


@torch.no_grad()
def downstream_sliding_window(item: Item) -> Computed:
    """A small convolutional model over windows of images of any size, or on whole ones; labels at another size."""
    config, found, seen = item.config, Computed(numbers={"windows": []}), list[list[int]]()
    weights = item.weights("backbone/")
    kernel = next(tensor for tensor in weights.values() if tensor.ndim == 4)
    reader = nn.Conv2d(kernel.shape[1], config["width"], kernel.shape[2], config["stride_of_features"], padding=1)
    networks.filled(item, reader, lambda name: next(each for each in weights if each.endswith(name)), weights)
    of_head = item.weights("head/")
    head = FCNHead(config["width"], len(of_head["convs.0.conv.weight"]), config["num_classes"])
    networks.filled(item, head, str, of_head).eval()

    def model(images: Tensor) -> Tensor:
        seen.append(list(images.shape[2:]))
        return head(reader(images).tanh())

    for number, case in enumerate(config["cases"]):
        images, windows = item.input(f"image_{number}"), dict[str, Any]()
        sides, crop, stride = tuple(images.shape[2:]), case["crop"], case["stride"]
        seen.clear()
        if crop is None:
            logits = enlarge(model(images), sides)
            seen.clear()
        else:
            logits = sliding_logits(model, images, config["num_classes"], tuple(crop), tuple(stride), fill=None)
            starts = [window_starts(*given) for given in zip(sides, crop, stride, strict=True)]
            along = zip(starts, crop, sides, strict=True)
            ends = [[min(start + side, end) for start in each] for each, side, end in along]
            corners = zip(product(*starts), product(*ends), strict=True)
            windows["windows_top_left_bottom_right"] = [[*start, *end] for start, end in corners]
        found.numbers["windows"].append({"case": number, "window_shapes_in_order": list(seen), **windows})
        probabilities = enlarge(logits, tuple(case["original"])).softmax(dim=1)
        if case["flip"]:
            probabilities = probabilities.flip(3)
        found.outputs |= {f"logits_{number}": logits, f"probabilities_{number}": probabilities}
        found.outputs[f"labels_{number}"] = probabilities.argmax(dim=1)
    return found


def downstream_mean_iou(item: Item) -> Computed:
    """Counts over all images, IoU and accuracies; and the mean over images that is not the score."""
    average = "mean_of_image_means (NOT the score)"
    found, config, by_image = Computed(relative={average: FLOAT32}), item.config, list[Tensor]()
    for number in range(len(config["sizes"])):
        labels = item.input(f"label_file_{number}").long()
        if config["reduce_zero_label"]:  # 0 has no class, and the others move down
            labels = torch.where((labels == 0) | (labels == 255), 255, labels - 1)
        found.outputs[f"label_used_{number}"] = labels
        guesses, settings = item.input(f"prediction_{number}").long(), {"ignore": config["ignore_index"]}
        by_image.append(count_pixels(guesses[None], labels[None], config["num_classes"], **settings))
    each = torch.cat(by_image)
    counts = each.sum(dim=0)
    found.outputs |= _counted(counts) | {"accuracy_per_class": class_accuracy(counts).nan_to_num(-1)}
    scores = means(counts)
    found.numbers = scores | {
        "mean_iou": scores["miou"],
        average: intersection_over_union(each).nanmean(dim=1).mean().item(),
        "classes_without_union": intersection_over_union(counts).isnan().nonzero().flatten().tolist(),
    }
    return found


def _counted(counts: Tensor) -> dict[str, Tensor]:
    """Pixels by class, and the IoU of each: -1 where it is neither labelled nor predicted."""
    hits, predicted, labelled = counts
    outputs = {"intersection": hits, "predicted": predicted, "labelled": labelled}
    return outputs | {"union": predicted + labelled - hits, "iou": intersection_over_union(counts).nan_to_num(-1)}


def downstream_optimizer_groups(item: Item) -> Computed:
    """Rate scale and decay of every parameter of an encoder with neck and heads, both rates, stochastic depth."""
    config, found = item.config, Computed(relative={"drop_path_rates": FLOAT32})
    shapes = item.numbers["segmentation"]["shapes"]
    model = _skeleton(shapes, config)
    names = {name: _official_name(name) for name, _ in model.named_parameters()}
    scale = layer_scale(config["depth"], config["layer_decay"])
    groups = parameter_groups(model, config["weight_decay"], decay_tokens=True, lr_scale=scale)
    by_name: dict[str, Any] = {}
    for group in groups:
        of_group = {"lr_scale": group["lr_scale"], "weight_decay": group["weight_decay"]}
        by_name |= {names[name]: of_group for name in group["param_names"]}
    shapes = {names[name]: list(parameter.shape) for name, parameter in model.named_parameters()}
    found.numbers["segmentation"] = {"groups_by_parameter": by_name, "shapes": shapes}
    schedule = Schedule(config["lr"], 0.0, WARMUP, STEPS, START * config["lr"])
    found.numbers["schedules"] = {
        key: [[step, SCHEDULES[key.partition(" ")[0]](schedule, step)] for step, _ in stated]
        for key, stated in item.numbers["schedules"].items()
        if key.partition(" ")[0] in SCHEDULES
    }
    rates = {rate: drop_path_rates(float(rate), config["depth"]) for rate in item.numbers["drop_path_rates"]}
    found.numbers["drop_path_rates"] = rates
    found.outputs["none"] = torch.zeros(1)
    found.unbuilt = ("numbers/vitdet*", "numbers/schedules/vitdet*")  # detection
    return found


def downstream_sizes_and_positions(item: Item) -> Computed:
    """Sizes of scaled images, and a position table for other grids in two ways."""
    rows, columns = item.config["position_grid"]
    table, found = item.input("position_table"), Computed(numbers={"sizes": []})
    for name in item.expected():
        if (to := re.fullmatch(r"positions_(by_size_)?(\d+)x(\d+)", name)) is not None:
            resized = resample if to[1] else resample_stretched
            num_prefix = table.shape[1] - rows * columns
            found.outputs[name] = resized(table, (rows, columns), (int(to[2]), int(to[3])), num_prefix)
    for stated in item.numbers["sizes"]:
        size = tuple(stated["image_h_w"])
        boxes = {key: box for key in stated if (box := _box(key)) is not None}
        scaled = {key: list(fitted_size(size, *box)) for key, box in boxes.items()}
        found.numbers["sizes"].append({"image_h_w": list(size), **scaled})
    # video object segmentation, and detection
    found.unbuilt = ("numbers/sizes/*/video frames*", "boxes_*", "kept_*", "numbers/large_scale_jitter*")
    return found


def downstream_class_share_crop(item: Item) -> Computed:
    """The crops that recorded random numbers give, and those numbers as we ask for them."""
    size, ignore = tuple(item.config["crop"]), item.config["ignore_index"]
    boxes, traces = [], []
    for trace in item.numbers["traces"]:
        labels = item.input(f"labels_{trace['map']}").numpy()
        replay = Recorded([["randint", *drawn] for drawn in trace["draws"]])
        top, left = crop_place(labels, size, item.config["cat_max_ratio"], ignore, replay)
        boxes.append([top, top + size[0], left, left + size[1]])
        crop = labels[top : top + size[0], left : left + size[1]]
        counts = class_counts(crop, ignore)
        made = {
            "map": trace["map"],
            "index": trace["index"],
            "draws": [drawn[1:] for drawn in replay.asked],
            "box_top_bottom_left_right": boxes[-1],
            "largest_share": float(counts.max(initial=0) / max(1, counts.sum())),
            "classes_in_crop": len(counts),
            "tries": len(replay.asked) // 2,
            "cropped_shape": list(crop.shape),
        }
        traces.append(made)
    return Computed({"boxes": torch.tensor(boxes)}, {"traces": traces})


def downstream_photometric(item: Item) -> Computed:
    """The colours that recorded random numbers give, and those numbers as we ask for them."""
    config = item.config
    contrast, saturation = (tuple(config[f"{name}_range"]) for name in ("contrast", "saturation"))
    distortion = Distortion(config["brightness_delta"], contrast, saturation, config["hue_delta"])
    computed, traces = Computed(), []
    for trace in item.numbers["traces"]:
        name, replay = f"image_bgr_{trace['image']}", Recorded(trace["draws"])
        image = item.input(name).flip(2).permute(2, 0, 1).numpy()
        ours = torch.from_numpy(distorted(image, distortion, replay)).permute(1, 2, 0).flip(2)
        target = item.output(name)
        if target is not None and ours.shape[1] >= SHORT_ROW:
            computed.errors[name] = (ours.int() - target.int()).abs().max().item() / LEVELS
        computed.outputs[name] = ours
        traces.append({"image": trace["image"], "draws": replay.asked})
    computed.numbers["traces"] = traces
    return computed


def _neck_name(neck: nn.Module, name: str) -> str:
    """The name of one of a pyramid's parameters in mmsegmentation, which counts how far a level is enlarged."""
    assert isinstance(neck, Pyramid)
    _, level, rest = name.split(".", 2)
    doublings = sum(isinstance(layer, nn.ConvTranspose2d) for layer in neck.levels[int(level)].modules())
    return f"upsample_{2**doublings}x.{rest}"


def _encoder(item: Item, position: str, **settings: Any) -> EncoderConfig:
    names = [*item.weights()]
    own = any(name.endswith(".attn.relative_position_bias_table") for name in names)
    shared = any(name.startswith("rel_pos_bias.") for name in names)
    settings |= {"position": position, "relative_position": "blocks" if own else "shared" if shared else "none"}
    settings |= {"attention_bias": "qv" if any(name.endswith("q_bias") for name in names) else "qkv"}
    return networks.encoder_config(item, layer_scale=item.config["init_values"] or None, **settings)


def _skeleton(shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> nn.Module:
    """An encoder with a pyramid and small heads, of the shapes that an item states."""
    patch, tokens = shapes["backbone.patch_embed.proj.weight"][2], shapes["backbone.pos_embed"][1]
    side = round((tokens - 1) ** 0.5)
    how: Any = {"position": "learned", "relative_position": "blocks", "attention_bias": "qv", "layer_scale": 1.0}
    how |= {name: config[name] for name in ("width", "depth", "heads")}
    encoder = EncoderConfig((side * patch, side * patch), patch, **how).build()
    encoder.norm = nn.Identity()
    channels, width, *kernel = shapes["decode_head.bottleneck.conv.weight"]
    scores, of_auxiliary = (shapes[f"{name}.conv_seg.weight"][:2] for name in ("decode_head", "auxiliary_head"))
    head = {"bottleneck": ConvNorm(width, channels, kernel[0]), "conv_seg": score_layer(scores[1], scores[0])}
    auxiliary = {"conv_seg": score_layer(of_auxiliary[1], of_auxiliary[0])}
    neck = Pyramid(config["width"], 16, (side, side))  # the neck of 16, whatever the patches of so small an encoder
    parts = {"encoder": encoder, "neck": neck, "head": nn.ModuleDict(head), "auxiliary": nn.ModuleDict(auxiliary)}
    return nn.ModuleDict(parts)


def _official_name(name: str) -> str:
    """The name of a segmenter's parameter in BEiT's, CAE's and dBOT's code, where the neck is in the encoder."""
    part, rest = name.split(".", 1)
    if part == "neck":
        _, level, rest = rest.split(".", 2)
        rest = f"fpn{int(level) + 1}.{rest}"
    return f"{PARTS[part]}.{rest}"


def _backbone_name(name: str) -> str:
    return _official_name(name).removeprefix("backbone.")


def _by_part(name: str) -> str:
    return name.replace(".", "/", 1)


def _statistics(model: nn.Module, names: networks.Names) -> dict[str, Tensor]:
    """Running statistics, after a pass in training mode."""
    return {f"after/{names(name)}": tensor for name, tensor in model.named_buffers() if ".running_" in name}


def _box(rule: str) -> tuple[int, int] | None:
    """Longer and shorter side of the box that a rule's name tells of; None: another kind of rule."""
    kind, numbers = rule.rstrip("(0123456789.,) ").removesuffix(" ratio"), re.findall(r"[\d.]+", rule)
    if kind in ("segmentation test", "detection test"):
        return int(numbers[0]), int(numbers[1])
    if kind == "segmentation train":
        return int(2048 * float(numbers[0])), int(512 * float(numbers[0]))
    if kind in ("detection train", "crop branch"):
        return 1333, int(numbers[0])
    return (int(numbers[0]), int(numbers[0])) if kind == "vitdet test" else None


def trajectory_segment(item: Item) -> Computed:
    """A run of UPerNet on MAE's or BEiT's backbone, whichever the item's weights are of."""
    config, position = item.config, "learned" if "backbone.pos_embed" in item.weights() else "none"
    sizes = {name: config[name] for name in ("channels", "auxiliary_channels", "auxiliary_weight")}
    head = UPerNetConfig(**sizes, pool_scales=tuple(config["pool_scales"]), dropout=config["dropout_ratio"])
    encoder = _encoder(item, position, image_size=(config["img_size"], config["img_size"]))
    method = SegmentConfig(encoder=encoder, num_classes=config["num_classes"], head=head)
    model = method.build()
    names = partial(_name, model)
    model.model.taps = tuple(config["out_indices"])
    optim = {"warmup": Duration(steps=config["warmup_steps"]), "start_lr": config["start_factor"] * config["lr"]}
    optim |= {"layer_decay": config["layer_decay"], "decay_tokens": True, "schedule": "poly"}
    run = Run(item, method, model, names, kept=("final_norm",), **optim).carry_out()
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
    found = run.computed(logged | buffers | tested | _counted(counts))
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
        counts += count_pixels(guesses, labels, config["num_classes"], ignore=config["ignore_index"]).sum(dim=0)
    return found, counts


def _name(model: Segment, name: str) -> str:
    part, _, rest = name.removeprefix("model.").partition(".")
    if part == "neck":
        return f"neck.{_neck_name(model.model.neck, rest)}"
    return mmpretrain_name(rest) if part == "encoder" else f"{PARTS.get(part, part)}.{rest}"
