"""The page about a run: one HTML file that needs nothing else, to be read offline, printed or mailed."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from pydantic import TypeAdapter, ValidationError

from pantomim.core.files import replace_file
from pantomim.masking import Masker, MaskerConfig
from pantomim.report.charts import Curve, line_chart
from pantomim.report.folder import RunFolder, look_up, read_run
from pantomim.report.inspection import TITLES, caption, panels
from pantomim.report.pictures import alignment_rows, triplets
from pantomim.report.scores import CONTENDERS, Result, leaves, points, read_results, summary, verdict
from pantomim.report.template import fill_template

CRISP_BELOW = 96  # pixels: smaller pictures are enlarged without blurring
DETAIL_BELOW = 200  # pixels: larger pictures get a row of their own


@dataclass(frozen=True)
class Chart:
    """A curve drawn for wide and for narrow pages."""

    title: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class Part:
    """A part of the training time."""

    name: str
    kind: str
    seconds: float
    share: float

    @property
    def text(self) -> str:
        """Its duration and share."""
        return f"{duration(self.seconds)}, {100 * self.share:.0f} %"


def make_report(run: str | Path, headline: str | None = None) -> Path:
    """Write `RUN/report.html` from what the run folder holds; what is missing is said with the command that makes it.

    Args:
        run: A run folder, finished or not.
        headline: Evaluation shown first, as the name of its file without `.json`; None: the linear probe with all
            labels, else the next in a fixed order that does not look at the scores.

    Raises:
        ValueError: if this is no run folder, or it has no such evaluation.
    """
    folder = read_run(run)
    results = read_results(folder.evaluations)
    if headline is not None:
        if headline not in {result.stem for result in results}:
            known = ", ".join(result.stem for result in results) or "none"
            raise ValueError(
                f"report.headline must name a file of {folder.path / 'eval'}; got {headline!r}. It has {known}."
            )
        results.sort(key=lambda result: result.stem != headline)
    path = folder.path / "report.html"
    replace_file(path, render(folder, results).encode())
    return path


def render(folder: RunFolder, results: list[Result]) -> str:
    """The page as HTML."""
    pictures = folder.pictures
    width = pictures.original.shape[2] if pictures else 0
    return fill_template(
        "page.html",
        run=str(folder.path),
        title=title(folder),
        facts=list(facts(folder)),
        headline=results[0] if results else None,
        results=results,
        contenders=CONTENDERS,
        repeated=any(s and s.deviation for r in results for row in r.rows for s in row.scores.values()),
        summary=summary(results) if results else "",
        points=points,
        progress=progress(folder),
        warnings=list(warnings(folder, results)),
        charts=list(charts(folder)),
        triplets=triplets(pictures) if pictures else [],
        alignment=folder.alignment,
        alignment_rows=alignment_rows(folder.alignment),
        guidance=folder.guidance,
        guidance_rows=alignment_rows(folder.guidance),
        about=pictures.about if pictures else {},
        drawable=look_up(folder.config, "method.kind", "mae") == "mae"
        and look_up(folder.config, "method.target.kind", "pixels") == "pixels",
        explained=explained(folder),
        crisp=width < CRISP_BELOW,
        large=width >= DETAIL_BELOW,
        inside=[(TITLES[facts.kind], panels(facts), caption(facts)) for facts in folder.inside],
        parts=time_parts(folder),
        speed=speed(folder),
        shows=[verdict(result) for result in results],
        limits=list(limits(folder, results)),
        settings=list(settings(folder)),
        repeat=f"pantomim pretrain --config {quoted(folder, 'config.yaml')} --out NEW_RUN",
        commands={
            "go on": f"pantomim pretrain --config {quoted(folder, 'config.yaml')} --out {quoted(folder)}",
            "evaluate": evaluate_command(folder),
            "report": f"pantomim report {quoted(folder)}",
        },
        usage=usage(folder),
        environment=[(name, text_of(value)) for name, value in leaves(folder.environment)],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=look_up(folder.environment, "packages.pantomim", ""),
    )


def title(folder: RunFolder) -> str:
    """What was trained, in a few words."""
    recipe = str(folder.config.get("recipe", folder.path.name))
    return f"{recipe} on {source_name(folder)}"


def source_name(folder: RunFolder) -> str:
    """The data's short name."""
    source = str(look_up(folder.config, "data.source", "unknown data") or "unknown data")
    return Path(source).name or source


def facts(folder: RunFolder) -> Iterator[tuple[str, str, str]]:
    """The run at a glance: name, value, remark."""
    encoder = look_up(folder.config, "method.encoder", {})
    if {"image_size", "patch_size", "width", "depth"} <= set(encoder):
        height, width = encoder["image_size"]
        size = f"{folder.num_parameters / 1e6:.2f} M parameters" if folder.num_parameters else ""
        yield "Encoder", f"ViT, {encoder['width']} wide, {encoder['depth']} deep", size
        patch = encoder["patch_size"]
        tokens = (height // patch) * (width // patch)
        hidden = f", {hiding(look_up(folder.config, 'method.masker', {}))}".rstrip(", ")
        channels = {1: "gray", 3: "colour"}.get(encoder.get("in_chans", 3), f"{encoder.get('in_chans')} channels")
        yield "Images", f"{height} × {width}, {channels}", f"{tokens} patches of {patch} × {patch}{hidden}"
    steps = folder.finished.get("steps") or (int(folder.metrics.steps[-1]) if len(folder.metrics) else 0)
    batch = folder.config.get("batch_size")
    if batch:
        seed = look_up(folder.config, "runtime.seed", "?")
        yield "Training", f"{steps:,} steps", f"{batch:,} images each, seed {seed}"
    total = total_seconds(folder)
    device = folder.environment.get("gpu") or folder.environment.get("cpu") or ""
    cores = folder.environment.get("cores")
    on_cores = f"{cores} cores, " if cores and not folder.environment.get("gpu") else ""
    if total is not None:
        yield "Time", duration(total), f"{on_cores}{device}".rstrip(", ")


def progress(folder: RunFolder) -> str:
    """A sentence on an unfinished run, else nothing."""
    if folder.finished:
        return ""
    if not len(folder.metrics):
        return "Training has not logged a step yet."
    wanted = look_up(folder.config, "duration.steps")
    of = f" of {wanted:,}" if isinstance(wanted, int) else ""
    return f"Training is not finished: the last logged step is {int(folder.metrics.steps[-1]):,}{of}."


def warnings(folder: RunFolder, results: list[Result]) -> Iterator[str]:
    """What is wrong with the folder's files, and what was with the run."""
    for problem in folder.problems:
        yield f"{problem}. What it would show is left out here."
    for alarm in folder.finished.get("alarms", []):
        yield f"While training: {alarm}"
    sha256 = folder.encoder.get("sha256")
    for result in results:
        if sha256 and result.details.get("encoder_sha256", sha256) != sha256:
            yield f"eval/{result.stem}.json was measured with other weights than this run has now. Evaluate again."
    for facts in folder.inside:
        if sha256 and sha256 not in [encoder.get("sha256") for encoder in facts.about["encoders"]]:
            yield f"analysis/{facts.kind}.npz was measured with other weights than this run has now. Inspect again."


def charts(folder: RunFolder) -> Iterator[Chart]:
    """The curves that the run has: the loss first and large, then learning rate and speed, then what guides masks."""
    metrics = folder.metrics
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "loss": ("Loss", "loss", {"smooth": True, "cut_start": True}),
        "lr": ("Learning rate", "learning rate", {"from_zero": True}),
        "images_per_s": ("Speed", "images/s", {"from_zero": True, "smooth": True}),
        "entropy_teacher": ("Entropy of the teacher's map", "share of the largest", {"smooth": True}),
        "entropy_student": ("Entropy of the copy's map", "share of the largest", {"smooth": True}),
        "entropy_mask": ("Entropy of the mixed map", "share of the largest", {"smooth": True}),
        "loss_teacher": ("Distance from the teacher's features", "distance", {"smooth": True, "cut_start": True}),
        "loss_student": ("Distance from the copy's features", "distance", {"smooth": True, "cut_start": True}),
        "student_std": ("Deviation of the copy's features", "share of their size", {"from_zero": True, "smooth": True}),
    }
    for name, (heading, y_label, options) in kinds.items():
        if metrics.has(name):
            curve = Curve(heading, y_label, metrics.steps, metrics.columns[name], **options)
            wide = line_chart(curve, 880, 290) if name == "loss" else line_chart(curve, 430, 220)
            yield Chart(curve.title, wide, line_chart(curve, 430, 240))


def time_parts(folder: RunFolder) -> list[Part]:
    """Waiting for data, computing, and the rest; empty if the metrics do not tell.

    The speed of a logged step covers the steps since the one logged before, but neither the first step after a start
    (loading, compiling) nor saving; these are the rest.
    """
    metrics, total, batch = folder.metrics, total_seconds(folder), folder.config.get("batch_size")
    if not total or not batch or not metrics.has("images_per_s") or not metrics.has("data_wait_s"):
        return []
    timed = np.isfinite(metrics.columns["images_per_s"]) & (metrics.columns["images_per_s"] > 0)
    num_steps = np.diff(metrics.steps, prepend=min(1, metrics.steps[0]))
    stepping = float((num_steps[timed] * batch / metrics.columns["images_per_s"][timed]).sum())
    waiting = min(float(np.nansum(metrics.columns["data_wait_s"][timed])), stepping)
    stepping = min(stepping, total)
    seconds = {
        ("Waiting for data", "wait"): waiting,
        ("Computing steps", "step"): max(stepping - waiting, 0.0),
        ("Starting, first step, saving", "rest"): max(total - stepping, 0.0),
    }
    return [Part(name, kind, value, value / total) for (name, kind), value in seconds.items()]


def speed(folder: RunFolder) -> str:
    """Speed and total, in a sentence; empty if unknown."""
    total, rate = total_seconds(folder), folder.finished.get("images_per_s")
    if rate is None and folder.metrics.has("images_per_s"):
        rate = float(np.nanmedian(folder.metrics.columns["images_per_s"]))
    if total is None or rate is None:
        return ""
    return f"{rate:,.0f} images/s on average while training; {duration(total)} in all."


def total_seconds(folder: RunFolder) -> float | None:
    """Training time over all starts."""
    wall = folder.finished.get("wall_s")
    if wall is None and folder.metrics.has("time_s"):
        wall = float(np.nanmax(folder.metrics.columns["time_s"]))
    return wall


def limits(folder: RunFolder, results: list[Result]) -> Iterator[str]:
    """What the numbers on the page cannot show."""
    if results:
        yield "This is one training run with one seed; how far another seed would land, it cannot say."
        same = [result for result in results if source_name(folder) in (result.data, Path(result.data).name)]
        if same:
            yield (
                "Pre-training and evaluation used the same source of images (its training part and its held-out part). "
                "How well the encoder serves other images is not tested."
            )
        if not any(result.stem.startswith("finetune") for result in results):
            yield "The encoder was frozen in these evaluations. Fine-tuning it may rank the contenders otherwise."
        noise = results[0].largest_noise
        if noise is not None:
            images = f"With {results[0].num_images:,} test images, " if results[0].num_images else ""
            text = f"{images}differences up to about {points(noise)} in the first result can be chance."
            yield text[0].upper() + text[1:]
        elif results[0].headline.lead is not None:
            yield "The result does not say how many images were scored, so how much of it is chance cannot be judged."
    if folder.pictures is not None:
        yield (
            "Good reconstructions do not prove good features, nor do poor ones disprove them: "
            "the decoder that draws them is thrown away."
        )
    if look_up(folder.config, "init"):
        yield f"Training started from existing weights ({look_up(folder.config, 'init')}), not from random ones."


def settings(folder: RunFolder) -> Iterator[tuple[str, str]]:
    """What was run, by name."""
    config = folder.config
    method = config.get("method", {})
    yield "Recipe", text_of(config.get("recipe"))
    images = look_up(config, "data.images")
    yield "Data", text_of(look_up(config, "data.source")) + (f" ({images:,} images of it)" if images else "")
    for part in ("encoder", "decoder"):
        sizes = method.get(part, {})
        if {"width", "depth", "heads"} <= set(sizes):
            yield (
                part.capitalize(),
                f"{sizes['depth']} blocks, {sizes['width']} wide, {sizes['heads']} heads",
            )
    for name, path in (("Teacher", "teacher.source"), ("Guide of the masks", "guide.source")):
        if source := look_up(method, path):
            yield name, str(source)
    if method.get("kind") == "cmt_mae":
        yield from _collaboration(method)
    if (kind := look_up(method, "target.kind")) is not None:
        how = {"patch": ", normalised patch by patch", "layer": ", layer norm of each patch"}
        yield "Target", kind + how.get(look_up(method, "target.normalise") or "", "")
    optim = config.get("optim", {})
    if "base_lr" in optim:
        yield (
            "Optimiser",
            f"AdamW, base learning rate {optim['base_lr']:g} per 256 images, weight decay {optim.get('weight_decay')}, "
            f"warm-up {length(optim.get('warmup'))}",
        )
    yield "Length", f"{length(config.get('duration'))}, batches of {config.get('batch_size', '?')} images"
    yield "Seed", text_of(look_up(config, "runtime.seed"))
    environment = folder.environment
    packages = environment.get("packages", {})
    versions = [f"{name} {packages[name]}" for name in ("pantomim", "torch", "timm") if name in packages]
    if environment.get("python"):
        versions.append(f"Python {environment['python']}")
    if versions:
        yield "Versions", ", ".join(versions)
    hardware = [environment.get("gpu"), environment.get("cpu")]
    if any(hardware):
        cores = environment.get("cores")
        yield "Hardware", ", ".join(str(part) for part in hardware if part) + (f", {cores} cores" if cores else "")
    if folder.encoder.get("sha256"):
        yield "Encoder hash", str(folder.encoder["sha256"])[:16]


def _collaboration(method: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who decides what in a run of CMT-MAE."""
    from pantomim.analysis.guidance import who_decides  # brings torch, which no other page needs

    try:
        return who_decides(method)
    except ValueError:
        return [("Teacher's weight", "config.yaml does not describe a run of CMT-MAE")]


def evaluate_command(folder: RunFolder) -> str:
    """The command for a first score."""
    source = str(look_up(folder.config, "data.source", "SRC") or "SRC")
    return f"pantomim evaluate linear --encoder {quoted(folder)} --data {shlex.quote(source)}"


def explained(folder: RunFolder) -> str:
    """How good the reconstructions are, in a sentence; empty if the file does not say."""
    about = folder.pictures.about if folder.pictures else {}
    share = about.get("explained")
    if not isinstance(share, float) or not math.isfinite(share):
        return ""
    around = "around their true means" if about.get("normalized_target") else "around the mean of the data"
    if share < 0:
        return "On these images the prediction is no better than a flat guess."
    return f"On these images the prediction explains {100 * share:.0f} % of the variation in hidden patches {around}."


def usage(folder: RunFolder) -> dict[str, str]:
    """A few lines of Python that take the encoder into use, with pantomim and with timm."""
    sizes = look_up(folder.config, "method.encoder", {})
    height, width = sizes.get("image_size", ("H", "W"))
    shape = f"(B, {sizes.get('in_chans', 3)}, {height}, {width})"
    run = str(folder.path)
    divisor = look_up(folder.encoder, "scale.divisor")
    scaled = f", values divided by {divisor:g}" if isinstance(divisor, int | float) else ""
    ours = (
        "import pantomim\n"
        f"encoder = pantomim.load({run!r})\n"
        f"features = encoder(images)  # {shape}{scaled}\n"
        "features.prefix, features.patches"
    )
    timm = (
        "import json, timm, torch, safetensors.torch\n"
        f"about = json.load(open({run + '/encoder.json'!r}))\n"
        "model = timm.models.vision_transformer.VisionTransformer(**about['timm']['kwargs'])\n"
        f"model.load_state_dict(safetensors.torch.load_file({run + '/encoder.safetensors'!r}))\n"
        "mean, std = (torch.tensor(about[key]).view(-1, 1, 1) for key in ('mean', 'std'))\n"
        "features = model.forward_features((images - mean) / std)"
    )
    return {"pantomim": ours, "timm": timm}


def hiding(masker: Mapping[str, Any]) -> str:
    """How much is hidden, and how: the masker of a config in a few words; empty where there is none."""
    ratio = masker.get("ratio")
    if not isinstance(ratio, float):
        return ""
    try:
        manner = TypeAdapter[Masker](MaskerConfig).validate_python(masker).manner
    except ValidationError:  # a run of another version
        manner = ""
    return f"{100 * ratio:.0f} % hidden {manner}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def length(value: Any) -> str:
    """A duration of the config in words."""
    if isinstance(value, dict):
        for unit in ("steps", "epochs"):
            if value.get(unit) is not None:
                return f"{value[unit]:,g} {unit}" if isinstance(value[unit], float) else f"{value[unit]:,} {unit}"
    return "not stated"


def text_of(value: Any) -> str:
    """A value for reading."""
    if value is None or value == "":
        return "–"
    if isinstance(value, list):
        return " ".join(text_of(item) for item in value)
    return str(value)


def quoted(folder: RunFolder, inner: str = "") -> str:
    """A path as one writes it in a shell."""
    return shlex.quote(str(folder.path / inner) if inner else str(folder.path))
