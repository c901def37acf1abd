"""From what a user typed to a config: a full name, a bare method that the data complete, or the file of another run."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from pantomim import recipes
from pantomim.config import (
    Duration,
    MaskConfig,
    Pretrain,
    Reinit,
    Stages,
    from_yaml,
    read_plan,
    with_duration,
    with_kind,
)
from pantomim.core.names import check_there, did_you_mean
from pantomim.data.dataset import Dataset, Facts
from pantomim.data.masks import open_masked, read_masked
from pantomim.data.record import DataRecord, read_record
from pantomim.data.sources import open_source, open_split
from pantomim.data.stats import Stats, channel_stats, check_scale
from pantomim.formats import load_trainable
from pantomim.methods.cae import CAEConfig
from pantomim.methods.guides import teacher_of, with_teacher
from pantomim.nn.resize import channels_in_words
from pantomim.nn.vit import EncoderConfig
from pantomim.recipes.continue_ import PIXELS_COST, Continued, continued
from pantomim.recipes.data2vec import momentum_for
from pantomim.recipes.dvae import check_range, choose_vocabulary
from pantomim.recipes.finetune import from_scratch
from pantomim.recipes.recipe import BASE_WIDTH, MAX_SIDE, MICRO_SIDE, Family, Recipe, Trained, no_recipe
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.teachers.choice import MOMENTUM, TeacherConfig
from pantomim.tokenizers.loading import PROJECTIONS

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared(Recipe):
    """A recipe with a user's choices."""

    decided: tuple[tuple[str, str], ...] = ()  # what the data decided, as (what, value)
    reinit: Reinit = "full"  # how each stage but the first begins
    evaluate: str | None = None  # labelled images on which each stage is scored
    num_images: int | None = None  # for training, if the data were asked for it

    @property
    def chain(self) -> Stages | None:
        """The chain of runs; None where it is a single one."""
        return None if self.stages is None else Stages(self.config, self.stages, self.reinit, self.evaluate)


def prepare(
    name: str | None,
    *,
    data: str | None = None,
    scale: float | None = None,
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
    trains: Trained = "encoder",
    subset: Mapping[str, Any] | None = None,
    scratch: bool = False,
    balanced: bool = False,
    begun: Path | None = None,
) -> Prepared:
    """The config of a recipe's full name, of a bare method, or of another run's config.yaml.

    A bare method asks `data`, and what the run in the folder `begun` found of these, what it leaves open; with `init`
    and no `size`, its sizes are those of that encoder. To train a tokenizer, no name means `dvae`, or with a teacher
    `vqkd`; `num_images` is then known unless the schedules are those of a file. A task may be trained on a `subset` of
    the data (settings of `DataConfig`), and from `scratch`: with the sizes of `init`, not the weights. The ValueError
    of a choice that does not exist or contradicts another names it `prepare.ARGUMENT`.
    """
    resized = steps is not None or epochs is not None
    if trains == "tokenizer" and name is None and config is None:
        name = "dvae" if teacher is None else "vqkd"
    family = recipes.BARE_OF[trains].get(name or "")
    if name is None and config is None:
        raise ValueError(
            "prepare.recipe must be named, unless prepare.config is; got neither. Name one, such as mae: `pantomim "
            "recipes` lists all."
        )
    if name is not None and config is not None:
        raise ValueError(
            f"prepare.recipe must be left out beside prepare.config, which has its own; got {name} and {config}. "
            f"Keep one of the two."
        )
    if size is not None and family is None:
        raise ValueError(
            f"prepare.size goes with a bare method ({', '.join(recipes.BARE_OF[trains])}); {name or config} fixes its "
            f"size. Leave it out, or name another recipe."
        )
    if config is not None:
        prepared = _from_file(config, trains)
    elif family is not None:
        prepared = _from_data(family, data, scale, size, init, teacher, subset or {}, balanced, _found(begun))
    else:
        prepared = Prepared(**vars(_named(name, trains)))
    run, given = prepared.config, {"source": data, "scale": scale}
    of_data: dict[str, Any] = dict(subset or {}) if config is not None else {}
    of_data |= {name: value for name, value in given.items() if value is not None}
    run = replace(run, data=replace(run.data, **of_data))
    if resized:
        run = with_duration(run, Duration(steps=steps, epochs=epochs))
    if init is not None:
        run = replace(run, init=init)
    if scratch:
        run = from_scratch(run)
    if target is not None or tokenizer is not None or teacher is not None:
        # Bare below base, a projection has the vocabulary of a tokenizer for so many images; ours.
        small = family is not None and hasattr(run.method, "encoder") and run.method.encoder.width < BASE_WIDTH
        vocabulary = choose_vocabulary(prepared.num_images) if small and prepared.num_images else None
        run = _with_target(run, target, tokenizer, teacher, vocabulary)
    if isinstance(family, Continued) and getattr(getattr(run.method, "target", None), "kind", "") == "pixels":
        LOG.info(PIXELS_COST)
    prepared = replace(prepared, config=run)
    if trains == "tokenizer":
        if not run.data.source:
            raise ValueError("prepare.data must name the images that a tokenizer is trained on; got None.")
        facts = open_source(run.data.source, "train").facts
        if run.method.kind == "dvae":
            check_range(facts)
        return replace(prepared, num_images=facts.num_images if config is None or resized else None)
    guide = teacher_of(run.method)
    if guide is not None and guide.source == "ema":
        if teacher == "ema" and stages is None:
            prepared = replace(prepared, stages=None)  # it moves at every step: there is nothing to hand on
        if teacher == "ema" or (name in recipes.BARE_METHODS and (resized or isinstance(family, Continued))):
            prepared = _with_momentum(prepared, guide)
    if stages is not None:
        if prepared.stages is None and isinstance(recipes.BARE_OF[trains].get(run.recipe), Continued):
            prepared = replace(prepared, reinit="none")  # a new student would have nothing of the given weights
        prepared = replace(prepared, stages=stages)
    if reinit not in (None, *get_args(Reinit)):
        raise ValueError(f"prepare.reinit must be one of {', '.join(get_args(Reinit))}; got {reinit}.")
    if prepared.stages is None and (reinit is not None or evaluate is not None):
        raise ValueError(
            f"prepare.reinit and prepare.evaluate must be left out for a single run; got them for {run.recipe}. "
            f"`pantomim evaluate` scores a finished run; prepare.stages makes a chain."
        )
    return replace(prepared, reinit=cast(Reinit, reinit or prepared.reinit), evaluate=evaluate or prepared.evaluate)


def _named(name: str | None, trains: Trained) -> Recipe:
    named = {recipe.name: recipe for recipe in recipes.RECIPES_OF[trains]}
    if name not in named:
        raise no_recipe(str(name), [*named, *recipes.BARE_OF[trains]])
    return named[name]


_COMMANDS = {"encoder": "pretrain", "tokenizer": "tokenizer train", "classifier": "finetune", "segmenter": "segment"}


def _from_file(path: Path, trains: Trained) -> Prepared:
    plan = read_plan(path)
    config = plan.run if isinstance(plan, Stages) else plan
    method: Any = config.method
    trained = recipes.trained_by(config.recipe) or recipes.trained_by(method.kind)
    if trained is None:
        names = [*recipes.BARE_OF[trains], *(recipe.name for recipe in recipes.RECIPES_OF[trains])]
        raise ValueError(
            f"prepare.config must have the name of a recipe in its `recipe`, or a method that is one; got {path}, a "
            f"run of {config.recipe} with the method {method.kind}."
            f"{did_you_mean(config.recipe, names, '`pantomim recipes` lists them all.')}"
        )
    if trained != trains:
        asked = f"{'an' if trains == 'encoder' else 'a'} {trains}"
        raise ValueError(
            f"prepare.config must be of a run that trains {asked}; got {path}, a run of {config.recipe}. "
            f"`pantomim {_COMMANDS[trained]}` repeats it."
        )
    bare = recipes.BARE_OF[trains]
    family = bare.get(config.recipe) or bare.get(method.kind) or next(iter(bare.values()))
    known = next((recipe for recipe in recipes.RECIPES_OF[trains] if recipe.name == config.recipe), None)
    paper = known.paper if known else family.paper(method.encoder.width if hasattr(method, "encoder") else 0)
    source = known or family
    prepared = Prepared(config, paper, f"the run of {path}", notes=source.notes, origins=source.origins)
    if isinstance(plan, Stages):
        return replace(prepared, stages=plan.stages, reinit=plan.reinit, evaluate=plan.evaluate)
    return prepared


def _from_data(
    family: Family,
    data: str | None,
    scale: float | None,
    size: str | None,
    init: str | None,
    teacher: str | None,
    subset: Mapping[str, Any],
    balanced: bool,
    found: "Found | None",
) -> Prepared:
    """A bare method with what the data, and the weights to start from, decide."""
    if data is None:
        raise ValueError(
            f"prepare.data must be given for the bare method {family.bare}, which asks the images for their size and "
            f"channels; got None."
        )
    if isinstance(family, Continued):
        family.check_start(init, size)
    if init is not None and size is None:
        check_there("prepare.init", init)
    used, start, num_whole, labels, sizes = dict(subset), None, None, None, f"size {size or family.default_size}"
    masks: MaskConfig | None = used.pop("masks", None)
    if masks is None:
        complete = open_source(data, "train", scale)
        complete = complete.labelled() if family.trains == "classifier" else complete
        dataset = complete.part(**used)
        num_whole, labels = len(complete), dataset.labels
        facts = dataset.facts if found is None else found[0].facts
    else:
        dataset, facts, masks = _of_masks(data, scale, found, masks, **used)
    stats = (found and found[1]) or channel_stats(dataset)
    if init is not None and size is None:
        encoder = load_trainable(init)
        start, sizes = encoder.config, f"as in {init}"
        if start.in_chans != facts.channels:
            sizes += f"; {channels_in_words(start.in_chans, facts.channels)}"
            start = replace(start, in_chans=facts.channels, mean=stats.mean, std=stats.std)
        else:
            check_scale(encoder, dataset)
    size = size or family.default_size
    config: Any = family.fit(size, facts, stats, start, num_whole)
    if isinstance(family, Continued):
        config = continued(config, str(init), facts.num_images)
        guide = teacher_of(config.method)
        if guide is not None and guide.source == init and teacher is None and encoder.in_chans != facts.channels:
            raise ValueError(
                f"prepare.init must have the {facts.channels} channel(s) of the images for {family.bare}, where it "
                f"teaches, too; got {encoder.in_chans} in {init}. Take continue, or name a prepare.teacher for them."
            )
    if balanced and labels is not None:
        config = replace(config, method=replace(config.method, class_weights=_weights(labels)))
    if masks is not None:
        used["masks"] = replace(masks, crop=config.data.masks.crop)
    config = replace(config, data=replace(config.data, **used))
    if start is not None:
        if family.trains == "encoder":  # mean and std lie in the encoder's own config
            crop = replace(config.data.crop, interpolation=start.interpolation or config.data.crop.interpolation)
            config = replace(config, data=replace(config.data, crop=crop))
        _warn(start, str(init), data, stats, config.data.crop.interpolation)
    return Prepared(
        config,
        family.paper(0 if family.trains == "tokenizer" else config.method.encoder.width),
        family.summary,
        notes=family.notes,
        stages=family.stages,
        origins=family.origins,
        decided=() if family.trains == "tokenizer" else _decided(config, facts, dataset.scale.rule, sizes),
        num_images=facts.num_images,
    )


def _warn(start: EncoderConfig, init: str, data: str, stats: Stats, interpolation: str) -> None:
    """Say where images are other ones than weights were trained on; they are standardised as the weights expect."""
    channels = list(zip(start.mean, start.std, stats.mean, stats.std, strict=True))
    if any(abs(here - mean) > std / 2 or not std / 2 <= spread <= 2 * std for mean, std, here, spread in channels):
        pairs = (f"{here:.3g} ± {spread:.3g} instead of {mean:.3g} ± {std:.3g}" for mean, std, here, spread in channels)
        LOG.warning(
            "The images of %s have another mean and std than those that %s was trained on: %s. They are standardised "
            "as its weights expect, which is right for photographs; for others check data.scale.",
            *(data, init, ", ".join(pairs)),
        )
    if start.interpolation not in (None, interpolation):
        LOG.warning(
            "%s was trained on images that were resized by %s interpolation; these are by %s. data.crop.interpolation "
            "sets it.",
            *(init, start.interpolation, interpolation),
        )


def _weights(labels: np.ndarray) -> tuple[float, ...]:
    """Of each class in the loss, so that all weigh the same, and an image 1 on average."""
    counts = np.bincount(labels)
    return tuple(float(len(labels) / (np.count_nonzero(counts) * max(count, 1))) for count in counts)


# What a run found of its data, and the mean and std of its encoder, where it has one.
Found = tuple[DataRecord, Stats | None]


def _found(begun: Path | None) -> Found | None:
    """By the run in a folder, or by the first of the chain there; None where none has begun."""
    for folder in () if begun is None else (begun, begun / "stage-0"):
        if (record := read_record(folder)) is not None:
            encoder = getattr(from_yaml(Pretrain, folder / "config.yaml").method, "encoder", None)
            return record, None if encoder is None else Stats(encoder.mean, encoder.std)
    return None


def _of_masks(
    data: str, scale: float | None, found: Found | None, masks: MaskConfig, **subset: Any
) -> tuple[Dataset, Facts, MaskConfig]:
    """Images with masks, facts with the classes of the masks, and the masks as they are."""
    if found is not None and found[0].mask_classes:
        contents, there = read_masked(data, masks.name, ignore=masks.ignore, reduce_zero=masks.reduce_zero)
        dataset = open_split(replace(contents, scale=scale), data, "train").part(**subset)
        facts = replace(found[0].facts, num_classes=len(found[0].mask_classes))
        return dataset, facts, replace(masks, name=there.name, reduce_zero=there.reduce_zero)
    opened = open_masked(data, masks.name, masks.ignore, reduce_zero=masks.reduce_zero, tested=False, scale=scale)
    dataset = opened.parts["train"].part(**subset)
    facts = replace(dataset.facts, num_classes=len(opened.masks.names))
    return dataset, facts, replace(masks, name=opened.masks.name, reduce_zero=opened.masks.reduce_zero)


def _decided(config: Any, facts: Facts, rule: str, sizes: str) -> tuple[tuple[str, str], ...]:
    encoder = config.method.encoder
    seen = "all {}x{}".format(*facts.size) if facts.size else f"median shorter side {facts.median_shorter_side}"
    most = MICRO_SIDE if sizes == "size micro" else MAX_SIDE
    large = f", as {most} is the largest side taken as it is" * (max(facts.size or (0,)) > most)
    channels = zip(encoder.mean, encoder.std, strict=True)
    return (
        ("images", f"{facts.num_images:,} for training, {seen}, {facts.channels} channel(s) of {facts.dtype}"),
        ("image size", "{}x{}".format(*encoder.image_size) + large),
        ("patch size", "{}, grid {}x{}".format(encoder.patch_size, *encoder.grid)),
        ("encoder", sizes),
        ("values", rule),
        ("mean, std", ", ".join(f"{mean:.4g} ± {std:.3g}" for mean, std in channels)),
        ("batch size", str(config.batch_size)),
        *([("classes", str(facts.num_classes))] * hasattr(config.method, "num_classes")),
    )


def _with_target(
    run: Pretrain, target: str | None, tokenizer: str | None, teacher: str | None, vocabulary: int | None = None
) -> Pretrain:
    """The same run with another target; what one of this kind has already is kept, `vocabulary` is a projection's."""
    method: Any = run.method
    guide = getattr(method, "teacher", None)
    if isinstance(guide, TeacherConfig) and teacher is not None and target is None and tokenizer is None:
        return replace(run, method=replace(method, teacher=guide.of(teacher)))
    if not hasattr(method, "target"):
        raise ValueError(
            f"prepare.target, prepare.tokenizer and prepare.teacher must be left out for a method without that part; "
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
        projected = vocabulary if tokenizer.partition(":")[0] in PROJECTIONS else None
        found = replace(found, tokenizer=tokenizer, vocabulary=found.vocabulary or projected)
    if teacher is not None:
        found = replace(found, teacher=found.teacher.of(teacher))
    return replace(run, method=replace(method, target=found))


def _with_momentum(prepared: Prepared, guide: TeacherConfig) -> Prepared:
    """An EMA teacher's momentum for the length of the run, as bare data2vec's; where that is not known it stays."""
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


def follow(prepared: Prepared, config: Pretrain) -> Prepared:
    """With a config that settings changed: what goes by length and batch goes by theirs, unless they set it, too."""
    before, found = prepared.config, replace(prepared, config=config)
    if (before.duration, before.batch_size) == (config.duration, config.batch_size):
        return found
    peak, ratio = config.optim.base_lr * config.batch_size / 256, config.batch_size / before.batch_size
    ends = {name: getattr(config.optim, name) for name in ("start_lr", "min_lr")}
    if over := {name: ratio * end for name, end in ends.items() if end > peak and end == getattr(before.optim, name)}:
        LOG.info("%s follow(s) the batch, as above the rate's peak of %.3g.", " and ".join(over), peak)
        found = replace(found, config=replace(config, optim=replace(config.optim, **over)))
    guide = teacher_of(config.method)
    if prepared.decided and guide is not None and guide.source == "ema" and guide == teacher_of(before.method):
        found = _with_momentum(found, guide)
    return found
