"""From what a user typed to a config: a full name, a bare method that the data complete, or the file of another run."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from pantomim import recipes
from pantomim.config import Duration, Pretrain, Reinit, Stages, read_plan, with_duration, with_kind
from pantomim.data.dataset import Facts
from pantomim.data.sources import open_source
from pantomim.data.stats import channel_stats
from pantomim.formats import load_encoder
from pantomim.methods.cae import CAEConfig
from pantomim.methods.guides import teacher_of, with_teacher
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.recipes.data2vec import momentum_for
from pantomim.recipes.dvae import check_range
from pantomim.recipes.recipe import Family, Recipe
from pantomim.recipes.scale import MAX_SIDE
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.teachers.choice import MOMENTUM, TeacherConfig


@dataclass(frozen=True)
class Prepared:
    """A config, and what `explain` says beside it; `summary`, `notes`, `stages` and `origins` are as of `Recipe`.

    Args:
        config: The run; of a chain the first.
        paper: The paper's config that it is compared with.
        decided: What the data decided, as (what, value).
        reinit: How each stage but the first begins.
        evaluate: Labelled images on which each stage is scored.
        num_images: For training, where the data have been asked.
    """

    config: Pretrain
    paper: Pretrain
    summary: str
    notes: tuple[str, ...] = ()
    decided: tuple[tuple[str, str], ...] = ()
    stages: int | None = None
    reinit: Reinit = "full"
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
    target: str | None = None,
    tokenizer: str | None = None,
    teacher: str | None = None,
    stages: int | None = None,
    reinit: str | None = None,
    evaluate: str | None = None,
) -> Prepared:
    """The config of a recipe's full name, of a bare method, or of another run's config.yaml.

    A bare method asks `data` what it leaves open; with `init` and no `size`, its sizes are those of that encoder. The
    target is what `target`, `tokenizer` (as `load_tokenizer` takes it) or `teacher` (as `TeacherConfig.source`) say.
    `steps` or `epochs`, and `stages`, replace the recipe's; `config` is the file of a run, instead of a name.

    Raises:
        ValueError: if the recipe does not exist, or options contradict each other or leave something open. Its message
            names an argument of this function `prepare.ARGUMENT`.
    """
    prepared = _prepared(name, config, size, data, init, recipes.BARE_METHODS, recipes.RECIPES)
    run = _shared(prepared.config, data, steps, epochs)
    if init is not None:
        run = replace(run, init=init)
    if target is not None or tokenizer is not None or teacher is not None:
        run = _with_target(run, target, tokenizer, teacher)
    prepared = replace(prepared, config=run)
    guide = teacher_of(run.method)
    if guide is not None and guide.source == "ema":
        if teacher == "ema" and stages is None:
            prepared = replace(prepared, stages=None)  # it moves at every step: there is nothing to hand on
        if teacher == "ema" or (name in recipes.BARE_METHODS and (steps is not None or epochs is not None)):
            prepared = _with_momentum(prepared, guide)
    if stages is not None:
        prepared = replace(prepared, stages=stages)
    if reinit not in (None, *get_args(Reinit)):
        raise ValueError(f"prepare.reinit must be one of {', '.join(get_args(Reinit))}; got {reinit}.")
    if prepared.stages is None and (reinit is not None or evaluate is not None):
        raise ValueError(
            f"prepare.reinit and prepare.evaluate must be left out for a single run; got them for {run.recipe}. "
            f"`pantomim evaluate` scores a finished run; prepare.stages makes a chain."
        )
    return replace(prepared, reinit=cast(Reinit, reinit or prepared.reinit), evaluate=evaluate or prepared.evaluate)


def prepare_tokenizer(
    name: str | None,
    *,
    data: str | None,
    size: str | None = None,
    teacher: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    config: Path | None = None,
) -> tuple[Prepared, int | None]:
    """The same for a tokenizer: a recipe, the bare `dvae` or `vqkd`, or the file of another run.

    Without name and file it is `dvae`, or with a teacher `vqkd`.

    Returns: the config, and the number of training images, for `fitted`; None where schedules are the file's and stay
        so, as no other length is given.

    Raises:
        ValueError: as `prepare`.
    """
    if name is None and config is None:
        name = "dvae" if teacher is None else "vqkd"
    prepared = _prepared(name, config, size, data, None, recipes.BARE_TOKENIZERS, recipes.TOKENIZER_RECIPES)
    run = _shared(prepared.config, data, steps, epochs)
    if data is None and config is None:
        raise ValueError("prepare.data must name the images that a tokenizer is trained on; got None.")
    facts = open_source(data, "train").facts if data is not None else None
    if facts is not None and run.method.kind == "dvae":
        check_range(facts)
    if teacher is not None:
        if run.method.kind == "dvae":
            raise ValueError(
                f"prepare.teacher must be left out for all but vqkd; got {teacher} for {run.recipe}. Leave it out, or "
                f"name vqkd."
            )
        run = _with_target(run, None, None, teacher)
    prepared = replace(prepared, config=run)
    if config is not None and steps is None and epochs is None:
        return prepared, None
    return prepared, (facts or open_source(run.data.source, "train").facts).num_images


def _prepared(
    name: str | None,
    config: Path | None,
    size: str | None,
    data: str | None,
    init: str | None,
    bare: Mapping[str, Family],
    named: tuple[Recipe, ...],
) -> Prepared:
    """What a name or a file says, before any other choice."""
    if (name is None) == (config is None):
        raise ValueError(
            f"prepare needs either a recipe or prepare.config; got {name} and {config}. `pantomim recipes` lists "
            f"recipes."
        )
    if size is not None and name not in bare:
        raise ValueError(
            f"prepare.size goes with a bare method ({', '.join(bare)}); {name or config} fixes its size. Leave it out, "
            f"or name another recipe."
        )
    if config is not None:
        return _from_file(config, bare, named)
    assert name is not None
    if name in bare:
        return _from_data(bare[name], data, size, init)
    by_name = {recipe.name: recipe for recipe in named}
    if name not in by_name:
        close = difflib.get_close_matches(name, [*by_name, *bare], n=1)
        advice = f"Did you mean {close[0]}?" if close else "`pantomim recipes` lists them all."
        raise ValueError(f"There is no recipe {name}. {advice}")
    found = by_name[name]
    return Prepared(
        found.build(), found.paper(), found.summary, found.notes, stages=found.stages, origins=found.origins
    )


def _from_file(path: Path, bare: Mapping[str, Family], named: tuple[Recipe, ...]) -> Prepared:
    """The run of a file, compared with the paper of its recipe, or of its method."""
    plan = read_plan(path)
    config = plan.run if isinstance(plan, Stages) else plan
    method: Any = config.method
    if method.kind not in bare:
        here, there = ("encoders", "tokenizer train") if "mae" in bare else ("tokenizers", "pretrain")
        raise ValueError(
            f"prepare.config must be of a run that trains {here}; got {path}, a run of {config.recipe}. "
            f"`pantomim {there}` repeats it."
        )
    known = {recipe.name: recipe for recipe in named}.get(config.recipe)
    family = bare.get(config.recipe, bare[method.kind])
    paper = known.paper() if known else family.paper(method.encoder.width if hasattr(method, "encoder") else 0)
    told = known or family
    prepared = Prepared(config, paper, f"the run of {path}", told.notes, origins=told.origins)
    if isinstance(plan, Stages):
        return replace(prepared, stages=plan.stages, reinit=plan.reinit, evaluate=plan.evaluate)
    return prepared


def _from_data(family: Family, data: str | None, size: str | None, init: str | None) -> Prepared:
    """A bare method with what the data, and the weights to start from, decide."""
    if data is None:
        raise ValueError(
            f"prepare.data must be given for the bare method {family.bare}, which asks the images for their size and "
            f"channels; got None."
        )
    dataset = open_source(data, "train")
    facts, start = dataset.facts, None
    if init is not None and size is None:
        encoder = load_encoder(init)
        if not isinstance(encoder, Encoder):
            raise ValueError(
                f"prepare.init must be a plain vision transformer; got {init}, which the method cannot train."
            )
        start = encoder.config
    size = size or family.default_size
    config = family.fit(size, facts, channel_stats(dataset), start)
    method: Any = config.method
    told = {"stages": family.stages, "num_images": facts.num_images, "origins": family.origins}
    if family.tokenizer:
        return Prepared(config, family.paper(0), family.summary, family.notes, **told)  # type: ignore[arg-type]
    decided = _decided(config, facts, f"as in {init}" if start is not None else f"size {size}")
    paper = family.paper(method.encoder.width)
    return Prepared(config, paper, family.summary, family.notes, decided, **told)  # type: ignore[arg-type]


def _decided(config: Pretrain, facts: Facts, sizes: str) -> tuple[tuple[str, str], ...]:
    encoder: EncoderConfig = config.method.encoder  # type: ignore[union-attr]
    (height, width), (rows, cols) = encoder.image_size, encoder.grid
    seen = "all {}x{}".format(*facts.size) if facts.size else f"median shorter side {facts.median_shorter_side}"
    large = f", as {MAX_SIDE} is the largest side taken as it is" * (max(facts.size or (0,)) > MAX_SIDE)
    channels = zip(encoder.mean, encoder.std, strict=True)
    return (
        ("images", f"{facts.num_images:,} for training, {seen}, {facts.channels} channel(s) of {facts.dtype}"),
        ("image size", f"{height}x{width}{large}"),
        ("patch size", f"{encoder.patch_size}, grid {rows}x{cols}"),
        ("encoder", sizes),
        ("mean, std", ", ".join(f"{mean:.4g} ± {std:.3g}" for mean, std in channels)),
        ("batch size", str(config.batch_size)),
        *([("classes", str(facts.num_classes))] * hasattr(config.method, "num_classes")),
    )


def _shared(run: Pretrain, data: str | None, steps: int | None, epochs: float | None) -> Pretrain:
    """The run on these images, at this length."""
    if data is not None:
        run = replace(run, data=replace(run.data, source=data))
    if steps is not None or epochs is not None:
        run = with_duration(run, Duration(steps=steps, epochs=epochs))
    return run


def _with_target(run: Pretrain, target: str | None, tokenizer: str | None, teacher: str | None) -> Pretrain:
    """The same run with another target; what one of this kind has already, such as its vocabulary, is kept."""
    method: Any = run.method
    guide = getattr(method, "teacher", None)
    if isinstance(guide, TeacherConfig) and teacher is not None and target is None and tokenizer is None:
        return replace(run, method=replace(method, teacher=guide.of(teacher)))
    if not hasattr(method, "target"):
        raise ValueError(
            f"prepare.target, prepare.tokenizer and prepare.teacher go with mae, beit, cae and what is made of them; "
            f"got them for {run.recipe}, a run of {method.kind}. Leave them out, or name another recipe."
        )
    kind = target or ("features" if teacher is not None else "tokens")
    for argument, value, fits in (("tokenizer", tokenizer, "tokens"), ("teacher", teacher, "features")):
        if value is not None and kind != fits:
            raise ValueError(
                f"prepare.{argument} goes with prepare.target {fits}; got {value} and target {kind}. Drop one."
            )
    if kind == "pixels" and isinstance(method, CAEConfig) and method.target.kind != "pixels":
        found: Any = PixelTargetConfig(normalise="layer")  # CAE's authors' default
    else:
        found = with_kind(run, "method.target", kind).method.target  # type: ignore[union-attr]
    if tokenizer is not None:
        found = replace(found, tokenizer=tokenizer)
    if teacher is not None:
        found = replace(found, teacher=found.teacher.of(teacher))
    return replace(run, method=replace(method, target=found))


def _with_momentum(prepared: Prepared, guide: TeacherConfig) -> Prepared:
    """The same with an EMA teacher's momentum for the length of the run, as bare data2vec has it.

    The number of images decides how long a run is whose length is in epochs; without data the momentum stays.
    """
    run, num_images = prepared.config, prepared.num_images
    length = run.duration.steps
    if length is None:
        if num_images is None and run.data.source:
            num_images = open_source(run.data.source, "train").facts.num_images
        if num_images is None:
            kept = MOMENTUM if guide.momentum is None else guide.momentum
            note = f"momentum {kept:g}: once prepare.data is given it follows from the number of images"
            return replace(prepared, notes=(*prepared.notes, note))
        length = round((run.duration.epochs or 0) * num_images / run.batch_size)
    method = with_teacher(run.method, replace(guide, momentum=momentum_for(length)))
    return replace(prepared, config=replace(run, method=method))
