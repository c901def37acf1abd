"""The verbs of the package, in Python what the command line is in a shell: its options are the arguments of these.

Light to import: what a verb works with is imported when it is called.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pantomim.core.machine import Device, is_main_process
from pantomim.core.names import check_there, one_of

if TYPE_CHECKING:
    from pantomim.analysis.block_facts import BlockFacts
    from pantomim.analysis.inspection import Inspection
    from pantomim.analysis.pictures import PictureRows
    from pantomim.config import Pretrain
    from pantomim.engine.folder import Finished
    from pantomim.evaluate import Evaluation
    from pantomim.evaluate.predict import Predicted
    from pantomim.evaluate.trained import TaskEvaluation
    from pantomim.explain import Cost, Section
    from pantomim.recipes import Prepared

    # Values by dotted names, such as {"optim.base_lr": 1e-3}, or what makes of a config another one
    Settings = Mapping[str, Any] | Callable[[Pretrain], Pretrain]

LOG = logging.getLogger(__name__)
HOURS_S = 2 * 3600  # from which on a run is said to take hours
Place = str | os.PathLike[str]  # a path, or a name such as timm:NAME


@dataclass(frozen=True)
class Scored:
    """The result of an evaluation."""

    headline: str  # in one line
    path: Path  # its file
    scores: dict[str, Any] = field(repr=False)  # what is in the file: of each contender, as shares, and how they came

    def __str__(self) -> str:
        return self.headline


@dataclass(frozen=True)
class Inspected:
    """What there is to see of encoders."""

    page: Path
    files: tuple[Path, ...]  # beside it
    pictures: "list[PictureRows]" = field(repr=False)  # for each encoder, or of all
    blocks: "BlockFacts | None" = field(default=None, repr=False)  # or numbers of every block

    @property
    def warnings(self) -> list[str]:
        """What is wrong with an encoder or with the images."""
        of_blocks = [] if self.blocks is None else self.blocks.about["warnings"]
        return [*of_blocks, *(warning for seen in self.pictures for warning in seen.warnings)]


@dataclass(frozen=True)
class Run:
    """A run that is complete."""

    out: Path  # its folder
    finished: "Finished"  # of a chain the last stage's
    stages: tuple["Finished", ...] = ()  # of a chain
    scored: Scored | None = None  # of a task, on the test part of its data; None where this has no labels
    scratch: "Run | None" = None  # the same without pre-trained weights, if it was to be compared


@dataclass(frozen=True)
class Explanation:
    """What a run would be, section by section; as text it is a page."""

    recipe: str
    summary: str
    sections: list["Section"]  # a title, and rows of what and value

    def __str__(self) -> str:
        width = max(len(what) for _, rows in self.sections for what, _ in rows)
        parts = [
            "\n".join([title, *(f"  {what:{width}}  {value}" for what, value in rows)]) for title, rows in self.sections
        ]
        return "\n\n".join([f"{self.recipe}: {self.summary}", *parts])

    __repr__ = __str__


@contextmanager
def _speaking(verb: str, **others: str) -> Iterator[None]:
    """Messages from below name the arguments of a verb, some of which have other names there."""
    try:
        yield
    except ValueError as error:
        if error.args and isinstance(text := error.args[0], str):
            named = r"\b(?:prepare\.|Pretrain\.(?=(?:init|out)\b))(\w+)"
            said = re.sub(named, lambda found: f"{verb}.{others.get(found[1], found[1])}", text)
            error.args = (said, *error.args[1:])
        raise


@_speaking("pretrain")
def pretrain(
    recipe: str | None = None,
    *,
    data: Place | None = None,
    out: Place | None = None,
    init: Place | None = None,
    size: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    target: str | None = None,
    teacher: Place | None = None,
    tokenizer: Place | None = None,
    stages: int | None = None,
    reinit: str | None = None,
    evaluate: Place | None = None,
    keep: int | None = None,
    config: Place | None = None,
    scale: float | None = None,
    minutes: float | None = None,
    extend: bool = False,
    settings: "Settings | None" = None,
) -> Run:
    """Pre-train an encoder; each setting of the config can be set, too.

    Args:
        recipe: A full name, such as mae_vit_base_in1k, or a bare one, such as mae, for any images. See `pantomim
            recipes`.
        data: An embedded set (mnist), a folder, a zip, an .npz, a text list of files, torchvision:NAME or hf:NAME.
        out: The run folder; an unfinished run of the same config in it is resumed.
        init: Start from these weights: a run folder, a file, timm:NAME or hf:NAME; docs/import.md has all.
        size: Size of the networks, for a bare name: from micro to huge.
        steps: Length in optimiser steps.
        epochs: Length in passes over the data.
        target: What is predicted, where the method leaves the choice, such as tokens, pixels or features.
        teacher: Whose features are predicted: random, ema, RUN, FILE, timm:NAME ...; docs/teachers.md has all.
        tokenizer: What gives the tokens: a run of `pantomim tokenizer train`, its tokenizer.safetensors, dalle:FILE,
            dalle:FOLDER, random-projection or random-projection-standardised (also :SEED).
        stages: A chain of so many runs in one folder, each the teacher of the next; steps and epochs are those of one.
        reinit: How each stage but the first begins: full (a new student and optimiser), reference (as dBOT's authors'
            code, which keeps the bias of the patch projection and AdamW's moments), none (the student keeps its
            weights).
        evaluate: Labelled images on which each stage is scored, with k-NN and a linear classifier.
        keep: Checkpoints to keep.
        config: Repeat the run of this config.yaml.
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        minutes: Length in minutes on this machine: so many steps are made as fit, by the first ones, which are timed.
        extend: Train the finished run in `out` on, to the length of steps or epochs, with its optimiser.
        settings: Values by dotted names, such as {"optim.base_lr": 1e-3}.
    """
    given = locals()
    if extend:
        prepared = _extended(recipe, given, folder := folder_of(out))
    else:
        given = given if minutes is None else _in_minutes(recipe, given, minutes, folder_of(out))
        prepared, folder = planned(recipe, given), folder_of(out)
        length = prepared.config.duration
        if minutes is not None and (length.steps, length.epochs) != (given["steps"], given["epochs"]):
            raise ValueError(
                f"pretrain.minutes must be given without a length in the settings; got {length}. Drop one."
            )
        _hint_at_hours(prepared, folder)
    if prepared.chain is not None:
        from pantomim.study.stages import run_stages

        stages_run = run_stages(prepared.chain, folder, LOG.info)
        return Run(folder, stages_run[-1], tuple(stages_run))
    return Run(folder, _one_length_after_another(prepared.config, folder))


@_speaking("explain")
def explain(
    recipe: str | None = None,
    *,
    data: Place | None = None,
    out: Place | None = None,
    init: Place | None = None,
    size: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    target: str | None = None,
    teacher: Place | None = None,
    tokenizer: Place | None = None,
    stages: int | None = None,
    reinit: str | None = None,
    evaluate: Place | None = None,
    keep: int | None = None,
    config: Place | None = None,
    scale: float | None = None,
    time: bool = False,
    settings: "Settings | None" = None,
) -> Explanation:
    """What a run would be, with the arguments of `pretrain`; costs nothing, but for half a minute with `time`.

    The recipe may also be that of a task, such as finetune_mae, with what it starts from as `init`. By `time` steps are
    really made, to tell how long the run takes.
    """
    given = locals()
    from pantomim.config import MaskConfig
    from pantomim.engine.runtime import compute_dtype, usable_device
    from pantomim.explain import count_cost
    from pantomim.explain import explain as sections_of
    from pantomim.methods.base import few_patches
    from pantomim.recipes import trained_by
    from pantomim.study.stages import describe_stages

    trains = found if (found := trained_by(recipe)) in ("classifier", "segmenter") else "encoder"
    prepared = planned(recipe, given, trains=trains, subset={"masks": MaskConfig()} if trains == "segmenter" else {})
    run, chain = prepared.config, prepared.chain
    device = usable_device("RuntimeConfig", run.runtime.device)
    dtype = compute_dtype(run.runtime, device)
    if (few := few_patches(run.method)) is not None:
        LOG.warning(few)
    sections: list[Section] = [("Decided from the data, unless set", [*_decided(prepared)])] if prepared.decided else []
    if chain is not None:
        sections.append(("Stages", describe_stages(chain, Path("RUN" if out is None else out))))
    cost = count_cost(run, dtype)
    sections.append(("Time", [*_time_rows(prepared, cost, device, dtype, time)]))
    sections += sections_of(run, prepared.paper, dtype, prepared.notes, prepared.origins, cost)
    return Explanation(run.recipe, prepared.summary, sections)


TIME = "        time: Make the first steps for 30 s at most, to tell how long the run takes.\n"
explain.__doc__ = f"{explain.__doc__}\n    Args:" + re.sub(
    r" +minutes: .*\n +extend: .*\n", TIME, (pretrain.__doc__ or "").partition("Args:")[2]
)


def _decided(prepared: "Prepared") -> Iterator[tuple[str, str]]:
    """What the data decided, and what was set instead."""
    config: Any = prepared.config
    encoder = config.method.encoder
    in_use = {
        "image size": "{}x{}".format(*encoder.image_size),
        "patch size": "{}, grid {}x{}".format(encoder.patch_size, *encoder.grid),
        "batch size": str(config.batch_size),
    }
    for what, value in prepared.decided:
        now = in_use.get(what, value)
        yield what, value if f"{value},".startswith(f"{now},") else f"{now} (by the data: {value})"


def _length_and_speed(run: "Pretrain", device: Any, dtype: Any) -> tuple[int | None, float]:
    """Steps, where the data are named, and the FLOP/s of a product of matrices on a device."""
    from pantomim.engine.setup import in_steps, open_images
    from pantomim.engine.timing import matrix_flops_per_s

    steps = run.duration.steps
    if steps is None and run.data.source:
        steps = in_steps(run, max(1, len(open_images(run).train) // run.batch_size))[0]
    return steps, matrix_flops_per_s(device, dtype)


def _time_rows(prepared: "Prepared", cost: "Cost", device: Any, dtype: Any, timed: bool) -> Iterator[tuple[str, str]]:
    """How long a run has, by its FLOPs, and by steps that are made if they are to be `timed`."""
    from pantomim.core.progress import about
    from pantomim.engine.timing import REACHED, SIDE, bfloat16_advice, time_steps

    run, runs = prepared.config, prepared.stages or 1
    steps, speed = _length_and_speed(run, device, dtype)
    each = f"{run.batch_size} images" + (f", {runs} times" if runs > 1 else "")
    unknown = f"{run.duration}; name the data to know the steps"
    yield "length", unknown if steps is None else f"{steps:,} steps of {each}"
    step_s = run.batch_size * cost.step_flops / (REACHED * speed)
    whole = "" if steps is None else f"about {about(runs * steps * step_s)}, "
    where = "CPU" if device.type == "cpu" else "GPU"
    product = f"{speed / 1e9:,.0f} GFLOP/s of a product of {SIDE} x {SIDE} matrices just now on this {where}"
    step = f"{step_s:.2g} s" if step_s < 120 else about(step_s)
    yield "by FLOPs", f"{whole}{step} a step at {REACHED:.0%} of the {product}, without reading images"
    if (advice := bfloat16_advice(device, dtype)) is not None:
        yield "faster by", advice
    if timed:
        found = time_steps(run)
        yield "timed", str(found)
        memory = "" if found.memory_gib is None or found.share < 1 else f"; memory {found.memory_gib:.1f} GiB"
        yield "whole run", f"about {about(runs * found.run_s)} for {found.total:,} steps{memory}"


def _in_minutes(recipe: str | None, given: Mapping[str, Any], minutes: float, folder: Path) -> dict[str, Any]:
    """The arguments with as many steps as fit into some minutes; those of a run that has begun stay as they are."""
    from pantomim.config import Stages, read_plan
    from pantomim.data.record import has_steps
    from pantomim.engine.timing import steps_that_fit

    if given["steps"] is not None or given["epochs"] is not None or minutes <= 0:
        raise ValueError(
            f"pretrain.minutes must be above 0, and given without pretrain.steps and pretrain.epochs; got {minutes:g} "
            f"with {given['steps']} and {given['epochs']}. Keep one of the three."
        )
    file = next((folder / name for name in ("stages.yaml", "config.yaml") if (folder / name).is_file()), None)
    if file is not None and (has_steps(folder) or has_steps(folder / "stage-0")):
        plan = read_plan(file)
        begun = plan.run.duration if isinstance(plan, Stages) else plan.duration
        LOG.info("%s was started with a length of %s, which it keeps.", folder, begun)
        return {**given, "steps": begun.steps, "epochs": begun.epochs}
    begin, prepared = perf_counter(), planned(recipe, given)
    runs, seconds = prepared.stages or 1, 60 * minutes - (perf_counter() - begin)
    steps, timing = steps_that_fit(prepared.config, seconds, runs)
    LOG.info("%d steps fit into %g minutes (%s).", steps * runs, minutes, timing)
    return {**given, "steps": steps}


def _hint_at_hours(prepared: "Prepared", folder: Path) -> None:
    """Say so before a run begins that takes hours on a CPU."""
    from pantomim.core.progress import about
    from pantomim.data.record import has_steps
    from pantomim.engine.runtime import compute_dtype, usable_device

    run, method = prepared.config, prepared.config.method
    encoder: Any = getattr(method, "encoder", None)
    if encoder is None or has_steps(folder):
        return
    if (device := usable_device("RuntimeConfig", run.runtime.device)).type != "cpu":
        return
    from pantomim.engine.timing import REACHED
    from pantomim.explain import count_cost

    dtype = compute_dtype(run.runtime, device)
    steps, reached = _length_and_speed(run, device, dtype)
    images, speed = run.batch_size * (steps or 0) * (prepared.stages or 1), REACHED * reached
    # of all patches through the encoder's blocks: what takes minutes is not counted exactly, which takes seconds
    if 72 * encoder.depth * encoder.width**2 * encoder.grid[0] * encoder.grid[1] * images / speed < 1800:
        return
    if (seconds := images * count_cost(run, dtype).step_flops / speed) > HOURS_S:
        sides = "x".join(map(str, encoder.image_size))
        bare = "pretrain.size micro" if prepared.decided else "a bare method such as mae with pretrain.size micro"
        smaller = bare if run.init is None else f"method.encoder.image_size below {sides}"
        fits = f"{smaller} and pretrain.minutes 30, or other minutes, make a run that fits"
        LOG.warning("the run takes about %s on this CPU, by its FLOPs; %s.", about(seconds), fits)


def _one_length_after_another(config: "Pretrain", folder: Path) -> "Finished":
    """Train as a config says, from the length on that the folder has come to: one that was extended ends at each."""
    from pantomim.config import from_yaml
    from pantomim.data.record import has_steps
    from pantomim.engine.pretrain import pretrain as train

    lengths, written = (*config.extended, config.duration), folder / "config.yaml"
    there = len(from_yaml(type(config), written).extended) if written.is_file() and has_steps(folder) else 0
    for earlier in range(min(there, len(lengths) - 1), len(lengths)):
        finished = train(replace(config, duration=lengths[earlier], extended=lengths[:earlier]), folder)
    return finished


def _extended(recipe: str | None, given: Mapping[str, Any], folder: Path) -> "Prepared":
    """The finished run in a folder at another length; all else must be what it was."""
    from pantomim.config import Duration, Pretrain, from_yaml

    asked = given["steps"], given["epochs"]
    if asked == (None, None) or given["minutes"] is not None or not (folder / "config.yaml").is_file():
        raise ValueError(
            f"pretrain.extend must go with the folder of a finished run, and with pretrain.steps or pretrain.epochs, "
            f"the new length of all of it, without pretrain.minutes; got {folder} and {asked[0]} steps, {asked[1]} "
            f"epochs. Name both."
        )
    there, length = from_yaml(Pretrain, folder / "config.yaml"), Duration(*asked)
    first = [*there.extended, there.duration][0]
    if recipe is None and given["config"] is None:
        prepared = planned(None, {**given, "config": folder / "config.yaml", "steps": None, "epochs": None})
    else:
        prepared = planned(recipe, {**given, "steps": None, "epochs": None})
        if prepared.config.duration != first:
            prepared = planned(recipe, {**given, "steps": first.steps, "epochs": first.epochs})
    if prepared.chain is not None or hasattr(prepared.config.method, "num_classes"):
        raise ValueError(
            f"pretrain.extend must be of a single run of pre-training; got {folder}. A chain grows by pretrain.stages."
        )
    earlier = there.extended if there.duration == length else (*there.extended, there.duration)
    return replace(prepared, config=replace(prepared.config, duration=length, extended=earlier))


@_speaking("finetune", init="encoder")
def finetune(
    data: Place | None = None,
    *,
    encoder: Place | None = None,
    out: Place | None = None,
    preset: str | None = None,
    fraction: float | None = None,
    labels_per_class: int | None = None,
    images: int | None = None,
    draw: int | None = None,
    balanced: bool = False,
    compare: bool = False,
    scratch: bool = False,
    size: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    keep: int | None = None,
    config: Place | None = None,
    scale: float | None = None,
    settings: "Settings | None" = None,
) -> Run:
    """Train a classifier from an encoder, and score it; each setting of the config can be set, too.

    Args:
        data: Images with labels: a folder with one folder a class, a zip, an .npz, a list of files with labels ...
        encoder: A run folder, a file of weights, timm:NAME, hf:NAME or open_clip:NAME:TAG; docs/import.md has all.
        out: The run folder; an unfinished run of the same config in it is resumed.
        preset: Whose recipe; by default that of the method which the encoder was pre-trained with, else MAE's.
        fraction: Use only this share of the training images of every class, rounded up.
        labels_per_class: Use only so many training images of every class.
        images: Use only so many training images, as even over the classes as these allow.
        draw: Which draw of the images, and of those that are held out.
        balanced: Weigh the loss so that rare classes count as much as frequent ones.
        compare: Then train the same network without the encoder's weights, in OUT/scratch, and compare the scores.
        scratch: Train the same network without the encoder's weights.
        size: Of the network, where no encoder is named: from micro to huge.
        steps: Length in optimiser steps.
        epochs: Length in passes over the data.
        keep: Checkpoints to keep.
        config: Repeat the run of this config.yaml.
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        settings: Values by dotted names, such as {"optim.base_lr": 1e-3}.
    """
    given = locals()
    return _task("finetune", given, trains="classifier", subset=_part(given), balanced=balanced)


@_speaking("segment", init="encoder")
def segment(
    data: Place | None = None,
    *,
    encoder: Place | None = None,
    out: Place | None = None,
    preset: str | None = None,
    masks: str | None = None,
    ignore: int = 255,
    reduce_zero: bool | None = None,
    head: Literal["upernet", "linear", "dpt"] | None = None,
    frozen: bool = False,
    images: int | None = None,
    draw: int | None = None,
    compare: bool = False,
    scratch: bool = False,
    size: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    keep: int | None = None,
    config: Place | None = None,
    scale: float | None = None,
    settings: "Settings | None" = None,
) -> Run:
    """Train a segmenter from an encoder, and score it; each setting of the config can be set, too.

    Args:
        data: Images with masks: folders, a zip, an .npz ...; docs/segmentation.md has all.
        encoder: A run folder, a file of weights, timm:NAME, hf:NAME or open_clip:NAME:TAG; docs/import.md has all.
        out: The run folder; an unfinished run of the same config in it is resumed.
        preset: Whose recipe; by default that of the method which the encoder was pre-trained with, else MAE's.
        masks: Which masks: a folder beside the images, or an array of the .npz; by default the only one.
        ignore: The value in masks of pixels that have no class.
        reduce_zero: Whether 0 is no class either, and the others count from 1; by default in ADE20K alone.
        head: What stands on the encoder: upernet, linear, or dpt.
        frozen: Train the head alone.
        images: Use only so many training images.
        draw: Which draw of the images, and of those that are held out.
        compare: Then train the same network without the encoder's weights, in OUT/scratch, and compare the scores.
        scratch: Train the same network without the encoder's weights.
        size: Of the network, where no encoder is named: from micro to huge.
        steps: Length in optimiser steps.
        epochs: Length in passes over the data.
        keep: Checkpoints to keep.
        config: Repeat the run of this config.yaml.
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        settings: Values by dotted names, such as {"optim.base_lr": 1e-3}.
    """
    given = locals()
    from pantomim.config import MaskConfig, with_kind

    asked = MaskConfig(masks, ignore, reduce_zero)
    if config is not None and asked != MaskConfig():
        raise ValueError(
            f"prepare.masks, prepare.ignore and prepare.reduce_zero must be left out beside prepare.config, which "
            f"has its own; got {masks}, {ignore} and {reduce_zero}. Set data.masks.name, say."
        )

    def fit(run: "Pretrain") -> "Pretrain":
        run = run if head is None else with_kind(run, "method.head", head)
        method: Any = run.method
        return replace(run, optim=replace(run.optim, freeze_blocks=method.encoder.depth)) if frozen else run

    subset = _part(given) | ({"masks": asked} if config is None else {})
    return _task("segment", given, fit, trains="segmenter", subset=subset)


def evaluate(
    protocol: str,
    *,
    data: Place,
    encoder: Place | None = None,
    classifier: Place | None = None,
    segmenter: Place | None = None,
    out: Place | None = None,
    **options: Any,
) -> Scored:
    """Score an encoder, beside the same untrained and raw pixels, or a network that was trained for a task.

    Args:
        protocol: Of an encoder knn, linear, few_labels, linear_mae, attentive, segmentation or, where there are no
            labels, label_free; of a classifier classifier or robustness; of a segmenter segmenter.
        data: As for training, with labels or masks but for label_free.
        encoder: A run folder, a file of weights, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE.
        classifier: The folder of a fine-tuned run, or the weights in it.
        segmenter: The folder of a run of segmentation, or the weights in it.
        out: FILE.json; by default in the run folder, where each evaluation has a file of its own.
        options: Those of the protocol, such as labels_per_class, and of all: images, image_size, contenders, seed ...
    """
    from pantomim.config import from_dict
    from pantomim.evaluate import PROTOCOLS, TASK_PROTOCOLS

    every: tuple[Any, ...] = (*PROTOCOLS, *TASK_PROTOCOLS)
    kind = one_of("evaluate.protocol", protocol, {kind.protocol: kind for kind in every})
    owner, argument = (kind.network.kind, "run") if kind in TASK_PROTOCOLS else ("encoder", "encoder")
    asked = {"encoder": encoder, "classifier": classifier, "segmenter": segmenter}
    networks = {name: os.fspath(network) for name, network in asked.items() if network is not None}
    if [*networks] != [owner]:
        raise ValueError(f"evaluate.{owner} alone must name what {protocol} scores; got {networks or 'none'}.")
    named = {argument: networks[owner], "data": os.fspath(data), "out": out}
    return score(from_dict(kind, named | options, f"evaluate {protocol}"))


def inspect(
    analysis: str, *encoders: Place, images: Place | None = None, out: Place | None = None, **options: Any
) -> Inspected:
    """Look into runs and encoders, on the same images: a page, and the arrays beside it.

    Args:
        analysis: Pictures without labels: reconstruct, attention, pca, neighbours, map or duplicates; numbers of every
            block: attention-distance, spectrum or cka; of a run's method: alignment or guidance.
        encoders: Run folders, files of weights, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE.
        images: As for pre-training; by default held-out images of the first run's data.
        out: The page: FILE.html, or FILE.png or FILE.svg of pictures; by default in the first run's folder.
        options: Those of the analysis, such as image_size, block or neighbours, and of all: scale, count, seed.
    """
    from pantomim.analysis import ANALYSES
    from pantomim.config import from_dict

    kind = one_of("inspect.analysis", analysis, {kind.name: kind for kind in ANALYSES})
    given = {"encoders": [os.fspath(encoder) for encoder in encoders], "out": out}
    given["images"] = None if images is None else os.fspath(images)
    return look_into(from_dict(kind, {**given, **options}, f"inspect {analysis}"))


def predict(
    run: Place,
    images: Place,
    *,
    out: Place,
    top: int | None = None,
    all: bool = False,
    overlays: bool = False,
    overwrite: bool = False,
    chunk: int | None = None,
    scale: float | None = None,
    device: Device = "auto",
) -> "Predicted":
    """Classify or segment new images, into a table or a folder of masks.

    Args:
        run: The folder of a fine-tuned run, or the weights of its classifier or segmenter.
        images: An image, or what `pretrain` takes as data; labels are not needed.
        out: Of a classifier FILE.csv, a row an image; of a segmenter a folder, a mask an image.
        top: Of a classifier: so many classes for each image, the likeliest first (3).
        all: The probability of every class instead, one column each.
        overlays: Of a segmenter: also write each image with the colours of its classes over it.
        overwrite: Replace what is there of the same names.
        chunk: Of a classifier: images at once (256).
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        device: "auto" takes a GPU if there is one.
    """
    from pantomim.engine.runtime import usable_device
    from pantomim.evaluate.predict import predict as write

    options: Any = {"top": top, "all": all, "overlays": overlays, "chunk": chunk, "overwrite": overwrite}
    where = usable_device("predict", device)
    return write(os.fspath(run), os.fspath(images), Path(out), scale=scale, device=where, **options)


def report(run: Place, *, headline: str | None = None, out: Place | None = None, data: Place | None = None) -> Path:
    """Make the page of a run, RUN/report.html: what was run, curves, pictures, scores.

    Args:
        run: A run folder, or that of a chain of runs.
        headline: The evaluation in RUN/eval whose score stands at the top, such as linear-10-mnist.
        out: FILE.html; by default RUN/report.html. Needed for a run that you may read but not write to.
        data: Where the images of the run lie now, if they have moved.
    """
    from pantomim.analysis import write_all_pictures
    from pantomim.core.files import check_out
    from pantomim.report import is_chain, make_report, make_stages_report

    folder, page, source = Path(run), None if out is None else Path(out), None if data is None else os.fspath(data)
    if folder.is_dir():
        check_out("report.out", page or folder / "report.html", (".html", ".htm"))
    if is_chain(folder):
        if headline is not None:
            raise ValueError(
                f"report.headline must be left out for a chain of runs; got {headline} for {folder}. Leave it out."
            )
        return make_stages_report(folder, page)
    if (folder / "encoder.safetensors").exists():
        try:
            write_all_pictures(folder, source=source)
        except (ValueError, OSError) as error:  # the data have moved, say: the rest of the page needs only the folder
            moved = " If the images have moved, name their place by report.data." * str(error).startswith("Source.")
            LOG.warning("no new pictures: %s%s", error, moved)
    return make_report(folder, headline, page)


def look_into(analysis: "Inspection") -> Inspected:
    """Look, and write what there is to see."""
    from pantomim.analysis.block_facts import BlockFacts, write_block_facts
    from pantomim.analysis.pictures import write_rows
    from pantomim.core.files import check_out
    from pantomim.report.inspection import write_inspection, write_views

    for encoder in analysis.encoders:
        check_there("Inspection.encoders", encoder)
    check_out("inspect.out", page := analysis.page, analysis.endings)
    found = analysis.run()
    if isinstance(found, BlockFacts):
        files = write_block_facts(found, page)
        return Inspected(write_inspection(found, page), tuple(files), [], found)
    files = write_rows(found[0], page.with_suffix(".npz")) if len(found) == 1 else []
    return Inspected(write_views(found, analysis.title, page), tuple(files), found)


def compare(runs: Sequence[Place], *, out: Place = "compare.html", data: Place | None = None, count: int = 6) -> Path:
    """Make one page of several runs: who is ahead, curves, scores, reconstructions, what differs, cost.

    Args:
        runs: Run folders; those that differ in the seed alone are one arm. Of a chain of runs, its last stage.
        out: FILE.html.
        data: Where the images of the first run lie now, if they have moved; reconstructions are of these.
        count: Images that are reconstructed, held out of the data of the first run that predicts pixels.
    """
    from pantomim.analysis.reconstructions import of_the_same_images
    from pantomim.core.files import check_out
    from pantomim.report.compare import make_comparison, read_arms
    from pantomim.report.folder import as_triplets

    page = Path(out)
    check_out("compare.out", page, (".html", ".htm"))
    arms, notes = read_arms([Path(run) for run in runs])
    source = None if data is None else os.fspath(data)
    drawn, told = of_the_same_images([arm.first.path for arm in arms], count, source)
    return make_comparison(arms, page, {run: as_triplets(arrays) for run, arrays in drawn.items()}, [*notes, *told])


def score(evaluation: "Evaluation | TaskEvaluation") -> Scored:
    """Score, and write the result."""
    path, result = evaluation.to_file()
    return Scored(evaluation.headline(result), path, result)


def folder_of(out: Place | None) -> Path:
    """The run folder, which has no default."""
    if out is None:
        raise ValueError("Pretrain.out must name a run folder; got none. Add one, such as runs/first.")
    return Path(out)


DECIDING = (
    *("data", "scale", "size", "init", "steps", "epochs", "target", "tokenizer", "teacher", "stages", "reinit"),
    *("evaluate", "scratch"),
)


def planned(
    recipe: str | None, given: Mapping[str, Any], fit: "Callable[[Pretrain], Pretrain] | None" = None, **more: Any
) -> "Prepared":
    """The run that a verb's arguments give, of which `settings` have the last word; `fit` comes before them."""
    from pantomim.config import with_settings
    from pantomim.recipes import follow, prepare

    choices = {name: given[name] for name in DECIDING if name in given}
    choices = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in choices.items()}
    file, begun = (None if given[name] is None else Path(given[name]) for name in ("config", "out"))
    prepared, settings = prepare(recipe, config=file, begun=begun, **choices | more), given["settings"]
    config = prepared.config if fit is None else fit(prepared.config)
    if settings is not None:
        config = settings(config) if callable(settings) else with_settings(config, settings)
    if given["keep"] is not None:
        config = replace(config, runtime=replace(config.runtime, keep=given["keep"]))
    return follow(prepared, config)


def _part(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the data, where not all of them are used."""
    names = ("fraction", "labels_per_class", "images", "draw")
    return {name: value for name in names if (value := given.get(name)) is not None}


def _task(verb: str, given: Mapping[str, Any], fit: Any = None, **more: Any) -> Run:
    """Train for a task, score on the test part of the data, and do the same without pre-training where asked to."""
    from pantomim.engine.pretrain import pretrain as train
    from pantomim.evaluate import evaluation_of
    from pantomim.evaluate.base import ScoresError
    from pantomim.evaluate.trained import FROM_SCRATCH
    from pantomim.recipes.finetune import from_scratch, preset_of

    encoder = None if given["encoder"] is None else os.fspath(given["encoder"])
    if given["config"] is None and encoder is None and not (given["scratch"] and given["size"]):
        raise ValueError(
            "prepare.encoder must name pre-trained weights, such as a run folder or timm:NAME; got none. Without "
            "any, set prepare.scratch and prepare.size."
        )
    for name in ("preset", "balanced") if given["config"] is not None else ():
        if given.get(name):
            raise ValueError(
                f"prepare.{name} must be left out beside prepare.config, which has its own recipe and weights of "
                f"classes; got {given[name]}. Leave it out, or start without the file."
            )
    recipe = None if given["config"] is not None else f"{verb}_{given['preset'] or preset_of(encoder)}"
    config, out = planned(recipe, {**given, "init": encoder}, fit, **more).config, folder_of(given["out"])
    runs, without = {out: config}, out / FROM_SCRATCH
    if given["compare"]:
        if config.init is None:
            raise ValueError(
                f"prepare.compare must be left out for a run from scratch, which has nothing to compare; got it for "
                f"{out}. Leave it out, or start from an encoder."
            )
        runs[without] = from_scratch(config)
    finished: dict[Path, Finished] = {}
    scored, again, missing = dict[Path, Scored](), False, ""
    for folder, each in runs.items():
        finished[folder] = train(each, folder)
        again = again or not finished[folder].already
        if missing or not is_main_process():
            continue
        try:
            scored[folder] = _scored(evaluation_of(config, folder), again)
            if folder == without:
                scored[out] = _scored(evaluation_of(config, out, without), again)
            elif without in runs and again:
                LOG.info("%s; next the same from scratch", scored[out])
        except ScoresError:
            raise
        except ValueError as error:  # a source may have no labelled test part: the run is whole without
            missing = str(error)
            LOG.warning("no score: %s", missing)
    done = {folder: Run(folder, each, scored=scored.get(folder)) for folder, each in finished.items()}
    return replace(done[out], scratch=done.get(without))


def _scored(evaluation: "TaskEvaluation", again: bool) -> Scored:
    """The score; one that is there already is taken, unless there is a new network or a new comparison."""
    from pantomim.evaluate.base import read_scored

    path = evaluation.path
    result = read_scored(path) if not again and path.is_file() else {}
    compared = evaluation.against is None or result.get("against", {}).get("from_scratch")
    return Scored(evaluation.headline(result), path, result) if "trained" in result and compared else score(evaluation)
