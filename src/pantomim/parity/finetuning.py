"""Fine-tuning and probing: whole runs of the authors' scripts from a checkpoint through our engine, and small pieces.

Official: facebookresearch/mae (`main_finetune.py`, `main_linprobe.py`), microsoft/unilm beit and CAE in either release
(`run_class_finetuning.py`; CAE's `run_linear.py`, `run_attentive.py`), liuxingbin/dbot (`evaluation/eval_cls.py`),
timm, google-research/augmix.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pantomim.evaluate.robustness import ALEXNET_ERRORS, corruption_errors, subset_top1
from pantomim.formats.mae import official_name as encoder_name
from pantomim.methods.probe import Frozen, ProbeConfig
from pantomim.methods.supervised import SupervisedConfig, SupervisedDraws
from pantomim.nn.heads import AttentiveHead, Classifier
from pantomim.nn.mixing import Mixing, mix_images, mix_targets
from pantomim.nn.momentum import follow
from pantomim.nn.position import TABLES
from pantomim.nn.resize import adapt_encoder_weights, resample
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import Schedule
from pantomim.parity import networks
from pantomim.parity.beit import beit_encoder
from pantomim.parity.cae import BLOCK, UNUSED_NORM, cae_encoder, head_name
from pantomim.parity.item import Computed, Item, distance
from pantomim.parity.trajectory import Tape, TestedRun

SCHEDULE = "transfer_schedule (epoch, rate)"
ROUNDED = 1e-6  # tolerance of what the scripts load, resize and mix in float32


def trajectory_finetune_mae(item: Item) -> Computed:
    """A run of MAE's `main_finetune.py`, with class token or mean pooling."""
    pool = "mean" if item.config.get("global_pool", True) else "class"
    encoder = networks.encoder_config(item)
    run = _finetuned(item, encoder, schedule="mae", pool=pool, head_init="mae", learn_positions=True)
    return run.computed(errors=_off_resized_table(item, encoder))


def trajectory_finetune_mixup_mae(item: Item) -> Computed:
    """The same with mixup and CutMix, whose outcome is given; and our own mixing by what the authors drew."""
    found, config = trajectory_finetune_mae(item), item.config
    images, labels = item.input("images"), item.input("labels")
    worst, rows = {"mixed_images": 0.0, "soft_targets": 0.0}, config["batch_size"]
    parts = [ids for step in item.input("image_ids") for ids in step.split(rows)]
    given = {name: item.input(name).flatten(0, 1).split(rows) for name in worst}
    for number, (ids, drawn) in enumerate(zip(parts, item.numbers["mixing"], strict=True)):
        mixing = Mixing(drawn.get("lam", 1.0), tuple(drawn["box"]) if drawn.get("box") else None)
        targets = mix_targets(labels[ids], config["num_classes"], mixing.lam, config["smoothing"], images.dtype)
        ours = {"mixed_images": mix_images(images[ids], mixing), "soft_targets": targets}
        for name, tensor in ours.items():
            worst[name] = max(worst[name], distance(tensor, given[name][number]))
    found.errors |= {f"numbers/mixing/{name}": off / ROUNDED for name, off in worst.items()}
    return found


def trajectory_finetune_beit(item: Item) -> Computed:
    """A run of BEiT's `run_class_finetuning.py`."""
    position = "learned" if item.config.get("absolute_positions") else "none"
    encoder = beit_encoder(item, relative_position="blocks", position=position)
    run = _finetuned(item, encoder, schedule="beit", pool="mean", head_init="beit")
    return run.computed(errors=_off_classifier(run, "", "shared"))


def trajectory_finetune_cae(item: Item) -> Computed:
    """A run of CAE's `run_class_finetuning.py`."""
    encoder = _cae_encoder(item, otherwise=True)
    run = _finetuned(item, encoder, schedule="beit", pool="mean", head_init="beit", norm_init="pretrained")
    return run.computed(errors=_off_classifier(run, "encoder.", "none"))


def trajectory_linprobe_mae(item: Item) -> Computed:
    """A run of MAE's `main_linprobe.py`, with class token or mean pooling."""
    encoder = networks.encoder_config(item)
    run = _linear(item, encoder, "mean" if item.config.get("global_pool") else "class")
    return run.computed(errors=_off_resized_table(item, encoder))


def trajectory_linear_cae(item: Item) -> Computed:
    """A run of CAE's `run_linear.py`, which resamples the checkpoint's positions."""
    encoder = _cae_encoder(item)
    return _linear(item, encoder, "class").computed(errors=_off_encoder(item, encoder))


def trajectory_attentive_cae(item: Item) -> Computed:
    """A run of CAE's `run_attentive.py`, which keeps the position table of the new grid."""
    encoder, decay = _cae_encoder(item), item.config.get("weight_decay_end")
    features = Frozen(encoder.build(), lambda network, images: networks.joined(network(images)))
    run = _probed(item, "attentive", features, optimiser="sgd", schedule="beit", weight_decay_end=decay)
    head, errors = run.method.model, _off_encoder(item, encoder, kept=("pos_embed",))
    found = run.computed(errors=errors)
    assert isinstance(head, AttentiveHead)
    head.test_batch_statistics = True
    found.outputs["eval_logits_batch_statistics"] = run.logits(head)
    return found


def _finetuned(item: Item, encoder: EncoderConfig, schedule: str, **parts: Any) -> TestedRun:
    """A finished run of the supervised method; mixed images are as given, all others as our own draw gives them."""
    config = item.config
    parts |= {"num_classes": config["num_classes"], "label_smoothing": config["smoothing"], "mixup": 0.0, "cutmix": 0.0}
    method = SupervisedConfig(encoder=encoder, ema=config.get("ema_decay"), **parts)
    optim = {"schedule": schedule, "layer_decay": config["layer_decay"], "decay_tokens": False}
    optim |= {"weight_decay_end": config.get("weight_decay_end")}
    optim |= {"decay_relative": config.get("decay_relative_tables", True)}

    def official_name(name: str) -> str:
        return encoder_name(name.removeprefix("model."))

    def mixed(tape: Tape) -> SupervisedDraws:
        return SupervisedDraws(tape.now("mixed_images"), tape.now("soft_targets"))

    draws = mixed if item.has("mixed_images") else None
    return TestedRun(item, method, method.build(), official_name, draws, kept=("ema.",), **optim).carry_out()


def _linear(item: Item, encoder: EncoderConfig, pool: Literal["mean", "class"]) -> TestedRun:
    """On one vector an image; vectors are in the group that decays, as the authors' LARS itself spares them."""
    network = Classifier(encoder.build(), item.config["num_classes"], pool)
    network.head = nn.Identity()  # type: ignore[assignment]
    optim = {"optimiser": "lars", "decay_vectors": True, "trust_coefficient": item.config["trust_coefficient"]}
    return _probed(item, "linear", Frozen(network, Classifier.features), **optim)


def _probed(item: Item, head: Literal["linear", "attentive"], features: Frozen, **optim: Any) -> TestedRun:
    """A finished run that trained a head alone."""
    config, (_, channels, height, width) = item.config, item.input("images").shape
    second_release = f"{BLOCK}norm_q.weight" in item.weights()

    def official_name(name: str) -> str:
        part, _, rest = name.partition(".")
        if part == "features":
            return encoder_name(rest.removeprefix("network."))
        if head == "linear":
            return rest.replace("head.", "head.1.").replace("norm.", "head.0.")
        theirs = head_name(rest)
        return theirs.replace(f"{BLOCK}norm1_", f"{BLOCK}norm_") if second_release else theirs

    classes, smoothing = config["num_classes"], config.get("smoothing", 0.0)
    method = ProbeConfig(head=head, num_classes=classes, heads=config["num_heads"], label_smoothing=smoothing)
    model = method.build(features, (height, width), channels)
    optim |= {"momentum": config["momentum"]}
    return TestedRun(item, method, model, official_name, unused=(UNUSED_NORM,), **optim).carry_out()


def _cae_encoder(item: Item, otherwise: bool = False) -> EncoderConfig:
    """With tables of relative positions, where the item has them or, if it does not say, `otherwise`."""
    return cae_encoder(item, relative_position="blocks" if item.config.get("relative_tables", otherwise) else "none")


def _off_resized_table(item: Item, encoder: EncoderConfig) -> dict[str, float]:
    """How far MAE's position table is from what our interpolation makes of the checkpoint's."""
    if not item.has("checkpoint_pos_embed"):
        return {}
    side = item.config["pretrain_img_size"] // encoder.patch_size
    resized = resample(item.input("checkpoint_pos_embed"), (side, side), encoder.grid, encoder.num_prefix)
    return _off_loaded(item, {"pos_embed": resized})


def _off_classifier(run: TestedRun, prefix: str, relative: Literal["shared", "none"]) -> dict[str, float]:
    """Of a classifier from the checkpoint, but for its head, which the checkpoint does not have."""
    method, item = run.config.method, run.item
    model = method.build().double()
    table = TABLES.get(method.encoder.position, "other")
    adapted, _ = model.take_encoder(_adapted(item, method.encoder, prefix, relative), table)
    norm = {f"fc_norm.{name}": weight for name, weight in model.model.fc_norm.state_dict().items()}
    return _off_loaded(item, model.encoder.state_dict() | adapted | norm)


def _off_encoder(item: Item, encoder: EncoderConfig, kept: tuple[str, ...] = ()) -> dict[str, float]:
    """Of a frozen encoder from the checkpoint; what is `kept` is as we build it."""
    adapted = _adapted(item, encoder, "encoder.", "none")
    ours = {name: weight for name, weight in adapted.items() if name not in kept}
    return _off_loaded(item, encoder.build().double().state_dict() | ours)


def _adapted(item: Item, to: EncoderConfig, prefix: str, relative: Literal["shared", "none"]) -> dict[str, Tensor]:
    """The checkpoint's encoder of the pre-trained size and relative positions, as we load it for another size."""
    side, weights = item.config["pretrain_img_size"], item.weights(f"pretrained/{prefix}")
    start = replace(to, relative_position=relative, image_size=(side, side))
    return adapt_encoder_weights({name: weights[name] for name in start.build().state_dict()}, start, to)[0]


def _off_loaded(item: Item, ours: Mapping[str, Tensor]) -> dict[str, float]:
    """How far what we make of the checkpoint is from what the script made of it, by the name of each weight."""
    state = item.weights()
    return {f"state/{name}": distance(weight, state[name]) / ROUNDED for name, weight in ours.items()}


def downstream_finetune_extras(item: Item) -> Computed:
    """Each piece on its own numbers; AlexNet's errors are ours."""
    names, subset = item.numbers["corruptions"], item.input("subset")
    relative = corruption_errors(dict(zip(names, item.input("errors").tolist(), strict=True)))
    errors, logits = torch.tensor(list(relative.values()), dtype=torch.float64), item.input("logits")
    labels, everything = item.input("subset_labels"), torch.arange(logits.shape[1])
    found = {
        "averaged": torch.stack(list(_averages(item.input("weights"), item.config["ema_decay"]))),
        "corruption_error": 100 * errors,
        "mce": 100 * errors.mean(),
        "subset_top1": errors.new_tensor(subset_top1(logits, subset, labels)),
        "wrong_top1_over_all_classes": errors.new_tensor(subset_top1(logits, everything, subset[labels])),
    }
    for number, sampler in enumerate(item.config["samplers"]):
        permutation, ranks = item.input(f"permutation_{number}"), sampler["replicas"]
        found |= {f"repeated_{number}/rank_{rank}": _dealt(permutation, ranks, rank) for rank in range(ranks)}
    stated = item.config["schedule"]
    schedule = Schedule(stated["lr"], stated["min_lr"], stated["warmup"], stated["epochs"], stated["warmup_lr"])
    rows = [[epoch, _transfer_rate(schedule, epoch)] for epoch, _ in item.numbers[SCHEDULE]]
    known = {"corruptions": list(ALEXNET_ERRORS), "alexnet_errors": [ALEXNET_ERRORS[name] for name in names]}
    return Computed(found, {SCHEDULE: rows, **known})


def _dealt(permutation: Tensor, ranks: int, rank: int) -> Tensor:
    """What one process sees of images three times in a row, an epoch cut to a multiple of 256: DeiT's sampler."""
    order = permutation.repeat_interleave(3)
    padded = torch.cat([order, order[: -len(order) % ranks]])  # the same number for all processes
    return padded[rank::ranks][: len(permutation) // 256 * 256 // ranks]


def _transfer_rate(schedule: Schedule, epoch: float) -> float:
    """By whole epochs, an epoch late, one cosine over all: timm's scheduler in dBOT's `evaluation/eval_cls.py`."""
    over = max(math.floor(epoch) - 1, 0)
    return schedule.mae(over) if over < schedule.warmup else replace(schedule, warmup=0).mae(over)


def _averages(weights: Tensor, decay: float) -> Iterator[Tensor]:
    """The moving average after each step, from the weights of all steps; it begins as the first."""
    module = nn.ParameterList([weights[0].clone()])
    average = copy.deepcopy(module)
    for step in weights[1:]:
        module[0].data = step
        follow(average, module, decay)
        yield average[0].detach().clone()
