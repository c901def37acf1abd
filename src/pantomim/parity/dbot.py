"""dBOT: pre-training against a given teacher, the symmetric variant, a whole run in stages, and the two analyses.

Official: liuxingbin/dbot, branches main and beit.
"""

import copy
import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pantomim.analysis.attention_distance import attention_distance, patch_distances
from pantomim.analysis.blocks import block_features
from pantomim.analysis.spectrum import concentration
from pantomim.config import Duration
from pantomim.core.mask import Mask
from pantomim.engine.initial import carry_over
from pantomim.formats.mae import official_name
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.nn.tokens import patch_grid
from pantomim.nn.vit import MaskTokens
from pantomim.optim import Schedule
from pantomim.parity import beit, networks
from pantomim.parity.item import Computed, Item
from pantomim.parity.statistics import initialisation
from pantomim.parity.trajectory import Run
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTarget, FeatureTargetConfig
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EncoderTeacher, Output

TEACHER = ("teacher.",)  # whose weights are in place before the student's are


def dbot_pretrain(item: Item) -> Computed:
    """Masking, student, teacher, the loss with and without the teacher's norm and the target's, every gradient."""
    images, noise, config = item.input("images"), item.input("noise"), item.config
    frozen = networks.encoder_config(item, depth=config["teacher_depth"]).build()
    networks.filled(item, frozen, str, item.weights("teacher/"))
    outputs, norms = dict[str, Tensor](), dict[str, dict[str, float]]()
    every = torch.arange(noise.shape[1]).expand(len(images), -1)
    for norm, normalise in itertools.product((False, True), (False, True)):
        method = _config(item, depth=config["student_depth"], normalise=normalise)
        model = method.build(teacher=EncoderTeacher(frozen, "given", output="norm" if norm else "block"))
        networks.filled(item, model, dbot_name, item.weights("student/"), kept=TEACHER)
        mask = Mask.from_scores(noise, method.masker.num_masked(method.encoder.grid))
        loss = model(networks.batch(item), Draws(mask))["loss"]
        name = f"layernorm{int(norm)}_normfeature{int(normalise)}"
        features = f"target_{name}" if normalise else f"teacher_features_layernorm{int(norm)}"
        outputs |= {f"loss_{name}": loss, features: model.target(model.teacher(images), every)}
        if [norm, normalise] == [bool(flag) for flag in config["gradient_case"]]:
            step = networks.backward(item, loss, model, dbot_name)
            outputs |= step.outputs
            norms[name] = step.numbers["gradient_l2_norms"]
    kept, masking = networks.in_order(mask, noise)
    latent = model.encoder(images, mask.ids_keep)
    outputs |= masking | {
        "mask_with_cls": torch.cat([torch.ones_like(mask.masked[:, :1]), mask.masked], dim=1),
        "latent": networks.joined(latent, kept),
        "pred": model.decoder(latent, mask, everywhere=True, with_class=True),
    }
    # What differs in names where the student becomes the next teacher, which our chains load exactly.
    student = {dbot_name(name) for name in model.state_dict() if not name.startswith(TEACHER)}
    teacher = set(model.encoder.state_dict())
    switch = {"missing_in_student": [*(teacher - student)], "not_used_by_teacher": [*(student - teacher)]}
    return Computed(
        outputs,
        {"gradient_l2_norms": norms, "stage_switch": switch},
        config=networks.norm_eps(model),
        errors=initialisation(item, method.build, dbot_name, "official_initialisation_student"),
    )


def trajectory_dbot(item: Item) -> Computed:
    """A run of the authors' `main_pretrain.py` through all its stages, each with their restart."""
    config = item.config
    output: Output = "norm" if config["tlayernorm"] else "block"
    teaching = TeacherConfig(source="random", depth=config["init_teacher_encoder_depth"], output=output)
    method = replace(_config(item, normalise=config["norm_feature_loss"]), teacher=teaching)
    weights, student = item.weights(), method.encoder.build()
    own = {name: weights[dbot_name(f"encoder.{name}")] for name in student.state_dict()}
    teacher, runs = teaching.build(networks.filled(item, student, str, own)), list[Run]()
    outputs, errors = dict[str, Tensor](), dict[str, float]()

    for stage, (begin, end) in enumerate(itertools.pairwise(config["stage_epochs"])):
        given = weights | item.weights(f"stage{stage}/")
        model = method.build(teacher=teacher)
        place = {"first": begin * config["steps_per_epoch"], "duration": Duration(epochs=end - begin)}
        run = Run(item, method, model, dbot_name, weights=given, kept=TEACHER, **place)
        if runs:
            before = runs[-1]
            carry_over(before.method, before.training.optimizer, model, run.training.optimizer, item.name)
        runs.append(run.carry_out())
        ended = run.weights(f"final_stage{stage}/")
        outputs |= ended
        errors |= run.compare_norms(f"final_stage{stage}", ended)
        teacher = EncoderTeacher(copy.deepcopy(model.encoder), "the student before", output=output)
    curves = {name: torch.cat([run.curve(name) for run in runs]) for name in ("loss", "grad_norm", "lr")}
    return runs[-1].computed(outputs | curves, errors)


def dbot_full_sequence(item: Item) -> Computed:
    """The symmetric variant, BEiT with a feature target, from its parts: no recipe predicts the class token."""
    images, masked, with_class = item.input("images"), item.input("mask"), item.config["reconstruct_class_token"]
    method, counts = BEiTConfig(encoder=beit.beit_encoder(item)), masked.sum(dim=1)
    mask = Mask.from_masked(masked, int(counts.max()), varies=True)
    teacher = GivenTeacher(item.input("teacher_tokens"), method.encoder.grid)
    target = FeatureTarget(FeatureTargetConfig(normalise="none", distance=Distance("cosine")), teacher, teacher.grid)
    model = networks.filled(item, method.build(target=target), beit.official_name)

    latent = model.encoder(images, mask_tokens=MaskTokens(masked, model.mask_token))
    chosen = torch.cat([torch.full_like(masked[:, :1], with_class), masked], dim=1)
    predictions, targets = model.head(networks.joined(latent))[chosen], teacher.tokens[chosen]  # image by image
    distances = {"l1": Distance("l1"), "l2": Distance("l2"), "smoothl1_beta2": Distance("smooth_l1", beta=2.0)}
    distances["negcosine"] = target.distance
    losses = {name: distance(predictions[None], targets[None]) for name, distance in distances.items()}
    if not with_class:
        losses["negcosine"] = model(networks.batch(item), Draws(mask))["loss"]
    found = networks.backward(item, losses["negcosine"], model, beit.official_name, "_negcosine")
    found.outputs |= {f"loss_{name}": loss for name, loss in losses.items()}
    found.outputs |= {"predictions": predictions, "targets": targets}
    found.config["masked_counts"] = counts.tolist()
    return found


def dbot_schedule(item: Item) -> Computed:
    """The rate of every stage, which is that of a separate run."""
    found = Computed(numbers={"schedules": []})
    for number, entry in enumerate(item.config["schedules"]):
        rates = [_rate(epoch, entry) for epoch in entry["points"]]
        found.outputs[f"lr_{number}"] = torch.tensor(rates, dtype=torch.float64)
        stated = item.numbers["schedules"][number] if "schedules" in item.numbers else {}
        found.numbers["schedules"].append({**stated, "values": list(zip(entry["points"], rates, strict=True))})
    return found


@torch.no_grad()
def dbot_analysis(item: Item) -> Computed:
    """Attention distance and singular values of given arrays, and of a vision transformer from its images on."""
    outputs: dict[str, Tensor] = {}
    for number, side in enumerate(item.config["attention_patch_sizes"]):
        attention = item.input(f"attention_{number}")  # (layers, heads, T, T), square grids
        count = round((attention.shape[-1] - 1) ** 0.5)
        distances = patch_distances((count, count), (side, side))
        outputs[f"distance_matrix_{number}"] = distances
        outputs[f"attention_distance_{number}"] = attention_distance(attention, distances, 1).distance
    outputs["svd_concentration"] = torch.stack([concentration(layer).mean(dim=0) for layer in item.input("features")])
    encoder = networks.filled(item, networks.encoder_config(item, position="learned").build(), str).eval()
    blocks = list(block_features(encoder, item.input("images"), need_attention=True))
    weights = [block.attention for block in blocks if block.attention is not None]
    distances = patch_distances(patch_grid(encoder.image_size, encoder.patch_size), (encoder.patch_size,) * 2)
    far = [attention_distance(found, distances, encoder.num_prefix).distance.mean(dim=0) for found in weights]
    outputs |= {
        "vit_attention_batch_mean": torch.stack([found.mean(dim=0) for found in weights]),
        "vit_attention_distance": torch.stack(far),
        "vit_features_last": blocks[-1].patches,
        "vit_svd_concentration": torch.stack([concentration(block.patches).mean(dim=0) for block in blocks]),
    }
    return Computed(outputs, config=networks.norm_eps(encoder))


class GivenTeacher(Teacher):
    """Gives the features that an item stores, the class token first, and the attention where there is one."""

    name = "the item's teacher"

    def __init__(self, tokens: Tensor, grid: tuple[int, int], attention: Tensor | None = None) -> None:
        super().__init__()
        self.tokens, self.attention, self.grid, self.width = tokens, attention, grid, tokens.shape[2]
        self.num_prefix, self.queries = 1, () if attention is None else ("class",)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        """The stored tokens, and the class token's row of the stored attention."""
        self.check_query(query)
        attention = None if query is None or self.attention is None else self.attention[:, 0, 1:]
        return Guidance(self.tokens[:, :1], self.tokens[:, 1:], attention)


def dbot_name(name: str) -> str:
    """The authors' name of a parameter of `DBOT`'s student."""
    return official_name(name).replace("decoder_pred.", "decoder_predp.")


def _config(item: Item, *, normalise: bool, **settings: Any) -> DBOTConfig:
    beta = item.config.get("smooth_l1_beta", 2.0)
    return DBOTConfig(
        encoder=networks.encoder_config(item, **settings),
        decoder=networks.decoder_config(item),
        masker=RandomMasker(ratio=float(item.config["mask_ratio"])),
        teacher=TeacherConfig(source="random"),
        normalise="unbiased" if normalise else "none",
        distance=Distance("smooth_l1", beta=beta) if beta else Distance("l1"),
    )


def _rate(epoch: float, entry: dict[str, Any]) -> float:
    begin = max(start for start in entry["stage_epochs"][:-1] if start <= epoch)
    end = min(start for start in entry["stage_epochs"] if start > epoch)
    return Schedule(entry["lr"], entry["min_lr"], entry["warmup_epochs"], end - begin).mae(epoch - begin)
