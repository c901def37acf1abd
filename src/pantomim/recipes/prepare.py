"""From what a user typed to a config: a full name, a bare method that the data complete, or the file of another run."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pantomim.config import Duration, Pretrain, Stages, read_plan, with_duration
from pantomim.data.dataset import Facts
from pantomim.data.sources import open_source
from pantomim.data.stats import Stats, channel_stats
from pantomim.formats import load_encoder
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.dvae import DVAEConfig
from pantomim.methods.guides import teacher_of, with_teacher
from pantomim.methods.mae import MAEConfig
from pantomim.methods.supervised import SupervisedConfig
from pantomim.methods.vqkd import VQKDConfig
from pantomim.nn.momentum import momentum_of_half_life
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.recipes.beit import RECIPES as BEIT_RECIPES
from pantomim.recipes.beit import beit, beit_paper
from pantomim.recipes.cae import RECIPES as CAE_RECIPES
from pantomim.recipes.cae import cae, cae_paper
from pantomim.recipes.clip import RECIPES as CLIP_RECIPES
from pantomim.recipes.cmt_mae import ORIGINS as CMT_MAE_ORIGINS
from pantomim.recipes.cmt_mae import RECIPES as CMT_MAE_RECIPES
from pantomim.recipes.cmt_mae import cmt_mae, cmt_mae_paper
from pantomim.recipes.colormae import RECIPES as COLORMAE_RECIPES
from pantomim.recipes.colormae import colormae, colormae_paper
from pantomim.recipes.data2vec import RECIPES as DATA2VEC_RECIPES
from pantomim.recipes.data2vec import data2vec, data2vec_paper
from pantomim.recipes.dbot import RECIPES as DBOT_RECIPES
from pantomim.recipes.dbot import dbot, dbot_paper
from pantomim.recipes.mae import MAX_SIDE, mae, mae_paper
from pantomim.recipes.mae import RECIPES as MAE_RECIPES
from pantomim.recipes.maskfeat import RECIPES as MASKFEAT_RECIPES
from pantomim.recipes.maskfeat import maskfeat, maskfeat_paper
from pantomim.recipes.mocov3 import RECIPES as MOCOV3_RECIPES
from pantomim.recipes.mocov3 import mocov3, mocov3_paper
from pantomim.recipes.recipe import Recipe
from pantomim.recipes.simmim import RECIPES as SIMMIM_RECIPES
from pantomim.recipes.simmim import simmim, simmim_paper
from pantomim.recipes.supervised import RECIPES as SUPERVISED_RECIPES
from pantomim.recipes.supervised import supervised, supervised_paper
from pantomim.targets import TargetConfig
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.choice import MOMENTUM, TeacherConfig

TargetKind = Literal["tokens", "pixels", "hog", "features"]
TARGETS: dict[TargetKind, Callable[[], TargetConfig]] = {
    "tokens": TokenTargetConfig,
    "pixels": PixelTargetConfig,
    "hog": HOGTargetConfig,
    "features": FeatureTargetConfig,
}


@dataclass(frozen=True)
class BareMethod:
    """A method for any images: what the data leave open is decided by `--size`.

    Args:
        build: Makes the config of a size, the data's facts and statistics, and an encoder to go on from.
        paper: The paper's config nearest to an encoder's width.
        stages: Of a chain of runs, how many; None: a single run.
        origins: As of `Recipe`.
    """

    build: Callable[[str, Facts, Stats, EncoderConfig | None], Pretrain]
    paper: Callable[[int], Pretrain]
    stages: int | None = None
    origins: Mapping[str, str] | None = None


RECIPES: tuple[Recipe, ...] = (
    *(*MAE_RECIPES, *COLORMAE_RECIPES, *BEIT_RECIPES, *CAE_RECIPES, *DBOT_RECIPES),
    *(*MASKFEAT_RECIPES, *SIMMIM_RECIPES, *DATA2VEC_RECIPES, *CLIP_RECIPES),
    *(*CMT_MAE_RECIPES, *MOCOV3_RECIPES, *SUPERVISED_RECIPES),
)
BARE_METHODS = {
    "mae": BareMethod(mae, mae_paper),
    "colormae": BareMethod(colormae, colormae_paper),
    "beit": BareMethod(beit, beit_paper),
    "cae": BareMethod(cae, cae_paper),
    "maskfeat": BareMethod(maskfeat, maskfeat_paper),
    "simmim": BareMethod(simmim, simmim_paper),
    "data2vec": BareMethod(data2vec, data2vec_paper),
    "cmt_mae": BareMethod(cmt_mae, cmt_mae_paper, origins=CMT_MAE_ORIGINS),
    "mocov3": BareMethod(mocov3, mocov3_paper),
    "supervised": BareMethod(supervised, supervised_paper),
    "dbot": BareMethod(dbot, dbot_paper, stages=2),
}
DEFAULT_SIZE = "tiny"


@dataclass(frozen=True)
class Prepared:
    """A config, and what `explain` says beside it.

    Args:
        config: The run.
        paper: The paper's config that it is compared with.
        summary: One line on what it is.
        notes: Differences from the paper that are no field of the config.
        decided: What the data decided, as (what, value).
        stages: Of a chain of runs, of which `config` is the first; None: a single run.
        reinit: How each stage but the first begins.
        evaluate: Labelled images on which each stage is scored.
        num_images: For training, where the data have been asked.
        origins: Where the values of `paper` come from; None: they are the paper's.
    """

    config: Pretrain
    paper: Pretrain
    summary: str
    notes: tuple[str, ...] = ()
    decided: tuple[tuple[str, str], ...] = ()
    stages: int | None = None
    reinit: Literal["full", "reference", "none"] = "full"
    evaluate: str | None = None
    num_images: int | None = None
    origins: Mapping[str, str] | None = None

    @property
    def chain(self) -> Stages | None:
        """The chain of runs; None where it is a single one."""
        return None if self.stages is None else Stages(self.config, self.stages, self.reinit, self.evaluate)


def prepare(
    name: str | None,
    *,
    data: str | None = None,
    size: str | None = None,
    init: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    config: Path | None = None,
    target: TargetKind | None = None,
    tokenizer: str | None = None,
    teacher: str | None = None,
    stages: int | None = None,
    reinit: Literal["full", "reference", "none"] | None = None,
    evaluate: str | None = None,
) -> Prepared:
    """The config of a recipe's full name, of a bare method, or of another run's config.yaml.

    Args:
        name: Full name or bare method; None with `config`.
        data: What `--data` takes; a bare method asks the data what it leaves open.
        size: Size of the encoder, for a bare method.
        init: Weights to go on from; without `size` a bare method takes the sizes of that encoder.
        steps: Length in steps, instead of the recipe's.
        epochs: Length in epochs, instead of the recipe's.
        config: The config.yaml of another run, instead of a name.
        target: What is predicted, for a method that leaves the choice.
        tokenizer: As `load_tokenizer` takes it; the target is then tokens.
        teacher: As `TeacherConfig.source` takes it; the target is then its features.
        stages: Length of a chain of runs, instead of the recipe's.
        reinit: How each stage but the first begins.
        evaluate: Labelled images on which each stage is scored.

    Raises:
        ValueError: if the recipe does not exist, or options contradict each other or leave something open.
    """
    if (name is None) == (config is None):
        raise ValueError(
            f"Give either a recipe or --config; got {name} and {config}. `pantomim recipes` lists recipes."
        )
    if size is not None and name not in BARE_METHODS:
        raise ValueError(
            f"--size goes with a bare method ({', '.join(BARE_METHODS)}); {name or config} fixes its size. "
            f"Leave it out, or name another recipe."
        )
    if config is not None:
        prepared = _from_file(config)
    elif name in BARE_METHODS:
        prepared = _from_data(name, data, size, init)
    else:
        recipe = _find(name or "")
        prepared = Prepared(recipe.build(), recipe.paper(), recipe.summary, recipe.notes, stages=recipe.stages)
        prepared = replace(prepared, origins=recipe.origins)
    run = prepared.config
    if data is not None:
        run = replace(run, data=replace(run.data, source=data))
    if init is not None:
        run = replace(run, init=init)
    if steps is not None or epochs is not None:
        run = with_duration(run, Duration(steps=steps, epochs=epochs))
    if target is not None or tokenizer is not None or teacher is not None:
        run = _with_target(run, target, tokenizer, teacher)
    prepared = replace(prepared, config=run)
    guide = teacher_of(run.method)
    if guide is not None and guide.source == "ema":
        if teacher == "ema" and stages is None:
            prepared = replace(prepared, stages=None)  # it moves at every step: there is nothing to hand on
        if teacher == "ema" or (name in BARE_METHODS and (steps is not None or epochs is not None)):
            prepared = _with_momentum(prepared, guide)
    return _in_stages(prepared, stages, reinit, evaluate)


def _with_momentum(prepared: Prepared, guide: TeacherConfig) -> Prepared:
    """The same with a moving average that forgets half of itself in a fiftieth of the run, as bare data2vec has it.

    The number of images decides how long a run is whose length is in epochs; without data the momentum stays.
    """
    run, num_images = prepared.config, prepared.num_images
    length = run.duration.steps
    if length is None:
        if num_images is None and run.data.source:
            num_images = open_source(run.data.source, "train").facts.num_images
        if num_images is None:
            kept = MOMENTUM if guide.momentum is None else guide.momentum
            note = f"momentum {kept:g}: with --data it follows from the number of images"
            return replace(prepared, notes=(*prepared.notes, note))
        length = round((run.duration.epochs or 0) * num_images / run.batch_size)
    momentum = round(momentum_of_half_life(max(length / 50, 1.0)), 6)
    method = with_teacher(run.method, replace(guide, momentum=momentum))
    return replace(prepared, config=replace(run, method=method))


def _in_stages(
    prepared: Prepared,
    stages: int | None,
    reinit: Literal["full", "reference", "none"] | None,
    evaluate: str | None,
) -> Prepared:
    """The same with what is asked for the chain of runs."""
    if stages is not None:
        prepared = replace(prepared, stages=stages)
    if prepared.stages is None and (reinit is not None or evaluate is not None):
        raise ValueError(
            f"--reinit and --evaluate go with --stages; got them for {prepared.config.recipe}, a single run. Leave "
            f"them out (`pantomim evaluate` scores a finished run), or give --stages N."
        )
    if reinit is not None:
        prepared = replace(prepared, reinit=reinit)
    return prepared if evaluate is None else replace(prepared, evaluate=evaluate)


def _with_target(run: Pretrain, target: TargetKind | None, tokenizer: str | None, teacher: str | None) -> Pretrain:
    """The same run with another target; what one of this kind has already, such as its vocabulary, is kept."""
    method = run.method
    guide = getattr(method, "teacher", None)
    if isinstance(guide, TeacherConfig) and teacher is not None and target is None and tokenizer is None:
        led: dict[str, Any] = {"teacher": guide.of(teacher)}
        return replace(run, method=replace(method, **led))
    if not isinstance(method, MAEConfig | BEiTConfig | CAEConfig):
        raise ValueError(
            f"--target, --tokenizer and --teacher go with mae, beit, cae and what is made of them; got them for "
            f"{run.recipe}, a run of {method.kind}. Leave them out, or name another recipe."
        )
    kind = target or ("features" if teacher is not None else "tokens")
    for option, value, goes_with in (("--tokenizer", tokenizer, "tokens"), ("--teacher", teacher, "features")):
        if value is not None and kind != goes_with:
            raise ValueError(f"{option} goes with --target {goes_with}; got {value} and --target {kind}. Drop one.")
    found = method.target
    if found.kind != kind:
        pixels_of_cae = kind == "pixels" and isinstance(method, CAEConfig)
        found = PixelTargetConfig(normalise="layer") if pixels_of_cae else TARGETS[kind]()  # CAE's authors' default
    if isinstance(found, TokenTargetConfig) and tokenizer is not None:
        found = replace(found, tokenizer=tokenizer)
    if isinstance(found, FeatureTargetConfig) and teacher is not None:
        found = replace(found, teacher=found.teacher.of(teacher))
    return replace(run, method=replace(method, target=found))


def _find(name: str) -> Recipe:
    recipes = {recipe.name: recipe for recipe in RECIPES}
    if name not in recipes:
        close = difflib.get_close_matches(name, [*recipes, *BARE_METHODS], n=1)
        advice = f"Did you mean {close[0]}?" if close else "`pantomim recipes` lists them all."
        raise ValueError(f"There is no recipe {name}. {advice}")
    return recipes[name]


def _from_file(path: Path) -> Prepared:
    plan = read_plan(path)
    config = plan.run if isinstance(plan, Stages) else plan
    if isinstance(config.method, DVAEConfig | VQKDConfig):
        raise ValueError(
            f"{path} is that of a tokenizer. `pantomim tokenizer train --config {path} --out RUN` repeats it."
        )
    known = {recipe.name: recipe for recipe in RECIPES}.get(config.recipe)
    bare = BARE_METHODS.get(config.recipe, BARE_METHODS[config.method.kind])
    paper = known.paper() if known else bare.paper(config.method.encoder.width)
    prepared = Prepared(config, paper, f"the run of {path}", known.notes if known else ())
    prepared = replace(prepared, origins=known.origins if known else bare.origins)
    if isinstance(plan, Stages):
        return replace(prepared, stages=plan.stages, reinit=plan.reinit, evaluate=plan.evaluate)
    return prepared


def _from_data(name: str, data: str | None, size: str | None, init: str | None) -> Prepared:
    """A bare method with what the data, and the weights to go on from, decide."""
    if data is None:
        raise ValueError("A bare method asks the data for its image size and channels. Add --data SRC.")
    dataset = open_source(data, "train")
    facts = dataset.facts
    start = load_encoder(init) if init is not None and size is None else None
    if start is not None and not isinstance(start, Encoder):
        raise ValueError(f"--init must be a plain vision transformer; {init} is none that the method can train.")
    method, start_config = BARE_METHODS[name], start.config if start is not None else None
    config = method.build(size or DEFAULT_SIZE, facts, channel_stats(dataset), start_config)
    assert not isinstance(config.method, DVAEConfig | VQKDConfig), "a tokenizer has commands of its own"
    encoder = config.method.encoder
    (height, width), (rows, cols) = encoder.image_size, encoder.grid
    sizes = "all {}x{}".format(*facts.size) if facts.size else f"median shorter side {facts.median_shorter_side}"
    channels = zip(encoder.mean, encoder.std, strict=True)
    too_large = (
        f", as {MAX_SIDE} is the largest side taken as it is" if facts.size and max(facts.size) > MAX_SIDE else ""
    )
    decided = (
        ("images", f"{facts.num_images:,} for training, {sizes}, {facts.channels} channel(s) of {facts.dtype}"),
        ("image size", f"{height}x{width}{too_large}"),
        ("patch size", f"{encoder.patch_size}, grid {rows}x{cols}"),
        ("encoder", f"as in {init}" if start is not None else f"size {size or DEFAULT_SIZE}"),
        (
            "mean, deviation",
            ", ".join(f"{mean:.4g} ± {std:.3g}" for mean, std in channels),
        ),
        ("batch size", str(config.batch_size)),
        *([("classes", str(facts.num_classes))] * isinstance(config.method, SupervisedConfig)),
    )
    summary = (method.build.__doc__ or "").splitlines()[0]
    paper = method.paper(encoder.width)
    found = Prepared(config, paper, summary, (), decided, method.stages, num_images=facts.num_images)
    return replace(found, origins=method.origins)
