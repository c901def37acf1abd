"""dBOT: pre-training against a given teacher, the symmetric variant, and the schedule, rebuilt with our modules.

Official: liuxingbin/dbot, branches main and beit. Visible patches are in the order of the noise there and in raster
order here; what is compared is put into the official order.
"""

import copy
import itertools
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pantomim.config import Duration
from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.engine.initial import carry_over
from pantomim.formats.files import load_exactly
from pantomim.formats.mae import official_name, our_name
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.dbot import DBOT, DBOTConfig, DBOTDraws
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig, MaskTokens, RelativePosition
from pantomim.optim import cosine_schedule
from pantomim.parity import beit
from pantomim.parity.compare import gradients, norm_eps, norms
from pantomim.parity.initialisation import initialisation
from pantomim.parity.item import Computed, Item
from pantomim.parity.sizes import decoder_config, encoder_config
from pantomim.parity.trajectory import Run, Tape, run_config
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTarget
from pantomim.teachers.base import Guidance, Query, Teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import EncoderTeacher

THEIR_HEAD, OUR_HEAD = "decoder_predp.", "decoder_pred."


def pretrain(item: Item) -> Computed:
    """Masking, student, teacher, the loss with and without the teacher's norm and the target's, every gradient."""
    images, noise, config = item.input("images"), item.input("noise"), item.config
    student = {_our_name(name): tensor for name, tensor in item.weights("student/").items()}
    teacher = {our_name(name).removeprefix("encoder."): t for name, t in item.weights("teacher/").items()}
    case = [bool(flag) for flag in config["gradient_case"]]
    outputs: dict[str, Tensor] = {}
    gradient_norms: dict[str, dict[str, float]] = {}
    for norm in (False, True):
        for normalise in (False, True):
            method = _config(item, images, "unbiased" if normalise else "none")
            frozen = _encoder(item, images, config["teacher_depth"]).build().double()
            load_exactly(frozen, teacher, item.name)
            model = method.build(teacher=EncoderTeacher(frozen, "given", output="norm" if norm else "block")).double()
            load_exactly(model, student | _of_teacher(model), item.name)
            mask = Mask.from_scores(noise, method.masker.num_masked(method.encoder.grid))
            loss = model(Batch(images, total=len(images)), DBOTDraws(mask))["loss"]
            name = f"layernorm{int(norm)}_normfeature{int(normalise)}"
            outputs[f"loss_{name}"] = loss
            every = torch.arange(noise.shape[1]).expand(len(images), -1)
            features = model.target(model.teacher(images), every)
            outputs[f"target_{name}" if normalise else f"teacher_features_layernorm{int(norm)}"] = features
            if [norm, normalise] == case:
                loss.backward()
                parameters = _official(model)
                outputs |= gradients("grad/", parameters)
                gradient_norms[name] = norms(parameters)
    outputs |= _parts(model, images, noise, mask)
    return Computed(
        outputs,
        numbers={"gradient_l2_norms": gradient_norms, "stage_switch": _stage_switch(model)},
        config={"layer_norm_eps": norm_eps(model), "smooth_l1_beta": model.distance.beta},
        deviations=initialisation(item, lambda: _official(method.build()), "official_initialisation_student"),
    )


def trajectory(item: Item) -> Computed:
    """A run of the authors' `main_pretrain.py` through all its stages, each with their restart."""
    config, images, borders = item.config, item.input("images"), item.config["stage_epochs"]
    beta = config["smooth_l1_beta"]
    method = DBOTConfig(
        encoder=encoder_config(config, images),
        decoder=decoder_config(config),
        masker=RandomMasker(ratio=float(config["mask_ratio"])),
        teacher=TeacherConfig(
            source="random",
            depth=config["init_teacher_encoder_depth"],
            output="norm" if config["tlayernorm"] else "block",
        ),
        normalise="unbiased" if config["norm_feature_loss"] else "none",
        distance=Distance("smooth_l1", beta=beta) if beta else Distance("l1"),
    )
    num_masked, first = method.masker.num_masked(method.encoder.grid), item.weights()
    teaching = method.encoder.build().double()
    own = {_our_name(name): tensor for name, tensor in first.items()}
    load_exactly(teaching, {n.removeprefix("encoder."): t for n, t in own.items() if n.startswith("encoder.")}, "state")
    teacher, runs = method.teacher.build(teaching), list[Run]()
    outputs: dict[str, Tensor] = {}
    norms_of_stages: dict[str, float] = {}
    for stage, (begin, end) in enumerate(itertools.pairwise(borders)):
        model = method.build(teacher=teacher).double()
        weights = first if stage == 0 else first | item.weights(f"stage{stage}/")
        load_exactly(model, {_our_name(name): t for name, t in weights.items()} | _of_teacher(model), item.name)
        settings = replace(run_config(item, method), duration=Duration(epochs=end - begin))
        tape = Tape(item, first=begin * config["steps_per_epoch"])
        run = Run(settings, model, tape, lambda tape: DBOTDraws(tape.scores("noise", num_masked)), _official_name)
        if runs:
            before = runs[-1].training
            carry_over(before.method, before.optimizer, run.training.method, run.training.optimizer, item.name)
        runs.append(run.carry_out())
        ended = run.weights(f"final_stage{stage}/")
        norms_of_stages |= run.compare_norms(f"final_stage{stage}", ended)
        outputs |= item.asked(ended)
        teacher = EncoderTeacher(copy.deepcopy(model.encoder), "the student before", output=method.teacher.output)
    curves = {name: torch.cat([run.curve(name) for run in runs]) for name in ("loss", "grad_norm", "lr")}
    last = runs[-1].computed(outputs | curves)
    return replace(last, deviations={**last.deviations, **norms_of_stages})


def full_sequence(item: Item) -> Computed:
    """The symmetric variant, which is BEiT with a feature target: predictions, four distances, every gradient.

    With the class token among what is predicted, as no recipe has it, the parts are put together here.
    """
    config, images, masked = item.config, item.input("images"), item.input("mask")
    said, with_class = item.input("teacher_tokens"), config["reconstruct_class_token"]
    relative: RelativePosition = "shared" if config["shared_relative_bias"] else "none"
    method = BEiTConfig(encoder=beit.encoder_config(item, images, relative))
    mask = Mask.from_masked(masked, max(config["masked_counts"]), varies=True)
    grid = method.encoder.grid
    target = FeatureTarget(GivenTeacher(said, grid), grid, "none", Distance("cosine"))
    model = method.build(target=target).double()
    weights, indices = beit.split_indices(item.weights())
    load_exactly(model, {beit.our_name(name): tensor for name, tensor in weights.items()}, item.name)

    latent = model.encoder(images, mask_tokens=MaskTokens(masked, model.mask_token))
    chosen = torch.cat([torch.full_like(masked[:, :1], with_class), masked], dim=1)
    predictions = model.head(torch.cat([latent.prefix, latent.patches], dim=1))[chosen]  # image by image
    targets = torch.cat([target.teacher(images).prefix, target(images)], dim=1)[chosen]
    distances = {
        "l1": Distance("l1"),
        "l2": Distance("l2"),
        "smoothl1_beta2": Distance("smooth_l1", beta=2.0),
        "negcosine": target.distance,
    }
    losses = {
        f"loss_{name}": distance(predictions.unsqueeze(0), targets.unsqueeze(0)) for name, distance in distances.items()
    }
    if not with_class:
        losses["loss_negcosine"] = model(Batch(images, total=len(images)), Draws(mask))["loss"]
    losses["loss_negcosine"].backward()
    parameters = beit.official(model)
    return Computed(
        {"predictions": predictions, "targets": targets, **losses, **gradients("grad_negcosine/", parameters)},
        numbers={"gradient_l2_norms_negcosine": norms(parameters)},
        config={"layer_norm_eps": norm_eps(model), "masked_counts": masked.sum(dim=1).tolist()},
        deviations=beit.compare_indices(model.encoder.relative_index, indices),
    )


class GivenTeacher(Teacher):
    """Says what an item says that its teacher said, the class token first."""

    def __init__(self, tokens: Tensor, grid: tuple[int, int]) -> None:
        super().__init__()
        self.tokens, self.grid, self.width = tokens, grid, tokens.shape[2]
        self.num_prefix = 1
        self._freeze()

    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        """The stored tokens."""
        self.check_query(query)
        return Guidance(self.tokens[:, :1], self.tokens[:, 1:])


def schedule(item: Item) -> Computed:
    """The rate of every stage, which is that of a run of its own."""
    outputs, numbers = {}, []
    for number, entry in enumerate(item.config["schedules"]):
        rates = [_rate(epoch, entry) for epoch in entry["points"]]
        outputs[f"lr_{number}"] = torch.tensor(rates, dtype=torch.float64)
        stated = item.numbers["schedules"][number]
        numbers.append({**stated, "values": [list(pair) for pair in zip(entry["points"], rates, strict=True)]})
    return Computed(outputs, numbers={"schedules": numbers})


def _rate(epoch: float, entry: dict[str, Any]) -> float:
    begin = max(start for start in entry["stage_epochs"][:-1] if start <= epoch)
    end = min(start for start in entry["stage_epochs"] if start > epoch)
    return cosine_schedule(
        epoch - begin,
        base=entry["lr"],
        minimum=entry["min_lr"],
        warmup=entry["warmup_epochs"],
        total=end - begin,
    )


def _encoder(item: Item, images: Tensor, depth: int) -> EncoderConfig:
    config, channels = item.config, images.shape[1]
    return EncoderConfig(
        image_size=(images.shape[2], images.shape[3]),
        patch_size=config["patch_size"],
        in_chans=channels,
        width=config["embed_dim"],
        depth=depth,
        heads=config["num_heads"],
        mlp_ratio=float(config["mlp_ratio"]),
        mean=(0.0,) * channels,  # the items' images are normalised already
        std=(1.0,) * channels,
    )


def _config(item: Item, images: Tensor, normalise: Literal["unbiased", "none"]) -> DBOTConfig:
    config = item.config
    return DBOTConfig(
        encoder=_encoder(item, images, config["student_depth"]),
        decoder=DecoderConfig(
            width=config["decoder_embed_dim"],
            depth=config["decoder_depth"],
            heads=config["decoder_num_heads"],
            mlp_ratio=float(config["mlp_ratio"]),
        ),
        masker=RandomMasker(ratio=float(config["mask_ratio"])),
        teacher=TeacherConfig(source="random"),
        normalise=normalise,
    )


def _parts(model: DBOT, images: Tensor, noise: Tensor, mask: Mask) -> dict[str, Tensor]:
    """What happens on the way to the loss, visible patches in the order of the noise."""
    kept = noise.gather(1, mask.ids_keep).argsort(dim=1)
    hidden = noise.gather(1, mask.ids_mask).argsort(dim=1)
    ids_shuffle = torch.cat([mask.ids_keep.gather(1, kept), mask.ids_mask.gather(1, hidden)], dim=1)
    latent = model.encoder(images, mask.ids_keep)
    return {
        "ids_restore": ids_shuffle.argsort(dim=1),
        "mask_with_cls": torch.cat([torch.ones_like(mask.masked[:, :1]), mask.masked], dim=1),
        "latent": torch.cat([latent.prefix, take(latent.patches, kept)], dim=1),
        "pred": model.decoder(latent, mask, everywhere=True, with_class=True),
    }


def _stage_switch(model: DBOT) -> dict[str, list[str]]:
    """What differs in names where the student becomes the next teacher, which our chains load exactly."""
    student = {_official_name(name) for name in model.state_dict() if not name.startswith("teacher.")}
    next_teacher = {official_name(f"encoder.{name}") for name in model.encoder.config.build().state_dict()}
    return {
        "missing_in_student": sorted(next_teacher - student),
        "not_used_by_teacher": sorted(student - next_teacher),
    }


def _of_teacher(model: DBOT) -> dict[str, Tensor]:
    """The teacher's own weights, which are in place."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("teacher.")}


def _our_name(name: str) -> str:
    return our_name(name.replace(THEIR_HEAD, OUR_HEAD))


def _official_name(name: str) -> str:
    return official_name(name).replace(OUR_HEAD, THEIR_HEAD)


def _official(model: nn.Module) -> dict[str, nn.Parameter]:
    named = model.named_parameters()
    return {_official_name(name): p for name, p in named if not name.startswith("teacher.")}
