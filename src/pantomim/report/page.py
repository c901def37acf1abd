"""The page about a run, made from its folder alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pantomim.analysis import VIEWS
from pantomim.analysis.guidance import who_decides
from pantomim.analysis.pictures import PictureRows
from pantomim.analysis.reconstructions import finding
from pantomim.config import leaves
from pantomim.core.files import replace_file
from pantomim.masking import Masker, MaskerConfig
from pantomim.report.charts import Chart, Curve, curve_chart
from pantomim.report.folder import Metrics, RunFolder, look_up, read_run
from pantomim.report.html import duration, fill_template, length, percent, surroundings, text_of
from pantomim.report.inspection import block_charts
from pantomim.report.scores import CONTENDERS, Result, points, read_results, score_table, summary, verdict
from pantomim.report.tasks import NUM_LOWEST, Scored, read_robustness, read_scored

FIGURES = {
    "rankme": "Effective rank (RankMe)",
    "std": "Std, of their size",
    "alignment": "Alignment of two crops (lower: nearer)",
    "uniformity": "Uniformity (lower: more even)",
}
CURVES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "loss": ("Loss", "loss", {"smooth": True, "cut_start": True}),
    "held_out_rankme": ("Effective rank (RankMe) on held-out images", "rank", {"from_zero": True}),
    "held_out_std": ("Std of features on held-out images", "share of their size", {"from_zero": True}),
    "val_top1": ("Top-1 on held-out training images", "share", {}),
    "val_miou": ("Mean IoU on held-out images", "share", {}),
    "lr": ("Learning rate", "learning rate", {"from_zero": True}),
    "images_per_s": ("Speed", "images/s", {"from_zero": True, "smooth": True}),
    "entropy_teacher": ("Entropy of the teacher's map", "share of the largest", {"smooth": True}),
    "entropy_student": ("Entropy of the EMA student's map", "share of the largest", {"smooth": True}),
    "entropy_mask": ("Entropy of the mixed map", "share of the largest", {"smooth": True}),
    "loss_teacher": ("Distance from the teacher's features", "distance", {"smooth": True, "cut_start": True}),
    "loss_student": ("Distance from the EMA student's features", "distance", {"smooth": True, "cut_start": True}),
    "student_std": ("Std of the EMA student's features", "share of their size", {"from_zero": True, "smooth": True}),
}


def make_report(run: str | Path, headline: str | None = None, out: Path | None = None) -> Path:
    """Write `RUN/report.html`, or `out`, from what the run folder holds; what is missing is named with its command."""
    path = out or Path(run) / "report.html"
    replace_file(path, report_of(run, headline).encode(errors="replace"))  # names of files may be no UTF-8
    return path


def report_of(run: str | Path, headline: str | None = None) -> str:
    """The page of a run folder as HTML; `headline` names the evaluation shown first, by its file without `.json`."""
    folder = read_run(run)
    results = read_results(folder.evaluations)
    stems = [result.stem for result in results]
    if headline is not None and headline not in stems:
        known = ", ".join(stems) or "none"
        raise ValueError(
            f"report.headline must name a file of {folder.path / 'eval'}; got {headline!r}. It has {known}."
        )
    results.sort(key=lambda result: result.stem != headline)
    try:
        return render(folder, results)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"report.run must hold files as they were written; got {folder.path}, where a value is of another kind "
            f"({error}). Put config.yaml, environment.json or finished.json back as they were."
        ) from error


def render(run: RunFolder, results: list[Result]) -> str:
    """The page as HTML."""
    notes, scored = list(warnings(run, results)), read_scored(run.evaluations) if run.task else []
    if run.task:
        results = [result for result in results if not result.stem.startswith(("finetune", "robustness", "segment-"))]
    scored_on = [result.details.get("name", result.data) for result in results]
    scores = [score for result in results for row in result.rows for score in row.found.values()]
    return fill_template(
        "page.html",
        ("page.css", "tasks.css") if run.task else ("page.css",),
        title=title(run),
        lead=opening(run, results, scored),
        notes=notes,
        scored=scored,
        lowest=NUM_LOWEST,
        robustness=list(read_robustness(run.evaluations)) if run.classifier else [],
        run=run,
        folder=str(run.path),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=list(facts(run)),
        unlabelled=is_unlabelled(run),
        without_labels=list(without_labels(run)),
        label_free=list(label_free(run)),
        results=results,
        contenders=CONTENDERS,
        repeated=any(score.std for score in scores),
        finetuned=any(result.stem.startswith("finetune") for result in results),
        same_source=any(source_name(run) in (name, Path(name).name) for name in scored_on),
        shows=[verdict(result) for result in results],
        views=[(name, VIEWS[name].title, seen) for name, seen in run.views.items()],
        hardest=hardest(run),
        finding=finding,
        charts=list(charts(run)),
        inside=block_charts(run.inside),
        time=time_parts(run),
        total=total_seconds(run),
        speed=measured(run, "images_per_s", "images_per_s", np.nanmedian),
        settings=list(settings(run)),
        environment=[(name, text_of(value)) for name, value in leaves(run.environment).items()],
        look_up=look_up,
        points=points,
        score_table=score_table,
    )


def hardest(folder: RunFolder) -> dict[str, PictureRows]:
    """Pictures of the hardest images of each file of scores."""
    if (found := folder.hardest) is None:
        return {}
    return {row.title: replace(found, rows=(replace(row, title=""),), warnings=()) for row in found.rows}


def opening(folder: RunFolder, results: list[Result], scored: list[Scored]) -> str:
    """What the page has to say, in a sentence or two."""
    if scored:
        words, share = scored[0].bars[0]
        return f"{words} of {percent(share)} on {scored[0].data}. {scored[0].against}".rstrip()
    if results and not folder.task:
        return summary(results)
    told = [*without_labels(folder), finding(folder.pictures.about) if folder.pictures else ""]
    if folder.metrics.has("loss") and not any(told):
        losses = folder.metrics.columns["loss"]
        first, last = losses[np.isfinite(losses)][[0, -1]]
        told = [f"The loss went from {first:.3g} to {last:.3g}; no evaluation tells yet what has been learned."]
    return next(filter(None, told), "Nothing has been logged yet.")


def title(folder: RunFolder) -> str:
    """What was trained, in a few words."""
    return f"{folder.config.get('recipe', folder.path.name)} on {source_name(folder)}"


def source_name(folder: RunFolder) -> str:
    """The data's short name."""
    source = str(look_up(folder.config, "data.source", "unknown data") or "unknown data")
    return Path(source).name or source


def facts(folder: RunFolder) -> Iterator[tuple[str, str, str]]:
    """The run at a glance: name, value, remark."""
    config, environment = folder.config, folder.environment
    encoder = look_up(config, "method.encoder") or folder.classifier.get("encoder", {})
    if {"image_size", "patch_size", "width", "depth"} <= set(encoder):
        (height, width), patch, channels = encoder["image_size"], encoder["patch_size"], encoder.get("in_chans", 3)
        size = f"{folder.num_parameters / 1e6:.2f} M parameters" if folder.num_parameters else ""
        yield "Encoder", f"ViT, {encoder['width']} wide, {encoder['depth']} deep", size
        colours = {1: "gray", 3: "colour"}.get(channels, f"{channels} channels")
        patches = f"{(height // patch) * (width // patch)} patches of {patch} × {patch}"
        remark = ", ".join(filter(None, [patches, masking(look_up(config, "method.masker", {}))]))
        yield "Images", f"{height} × {width}, {colours}", remark
    steps = folder.finished.get("steps") or (int(folder.metrics.steps[-1]) if len(folder.metrics.steps) else 0)
    if batch := config.get("batch_size"):
        lengths = [f"{each[unit]:,} {unit}" for each in config.get("extended", []) for unit in each if each[unit]]
        longer = f", extended after {' and '.join(lengths)}" if lengths else ""
        seed = look_up(config, "runtime.seed", "?")
        yield "Training", f"{steps:,} steps", f"{batch:,} images each, seed {seed}{longer}"
    if held_back := folder.data.get("held_back"):
        yield "Trained on", f"{folder.data['images']:,} images", f"{held_back:,} held back"
    if (total := total_seconds(folder)) is not None:
        gpu, cores = environment.get("gpu"), environment.get("cores")
        hardware = [gpu] if gpu else [f"{cores} cores" if cores else "", environment.get("cpu")]
        yield "Time", duration(total), ", ".join(filter(None, hardware))


def masking(masker: Mapping[str, Any]) -> str:
    """How much is masked, and how; empty where there is no masker."""
    ratio = masker.get("ratio")
    if not isinstance(ratio, float):
        return ""
    try:
        manner = TypeAdapter[Masker](MaskerConfig).validate_python(masker).manner
    except ValidationError:  # a run of another version
        manner = ""
    return f"{100 * ratio:.0f} % masked {manner}".rstrip()


def warnings(folder: RunFolder, results: list[Result]) -> Iterator[str]:
    """What is wrong with the folder's files, and what was with the run."""
    yield from (f"{problem}. What it would show is left out here." for problem in folder.problems)
    if folder.finished:
        told = folder.finished.get("warnings", folder.finished.get("alarms", []))
    else:
        told = look_up(folder.saved, "progress.warnings", [])
        failed = [int(file.name.split("-")[1]) for file in folder.path.glob("failure/step-*.safetensors")]
        if failed and max(failed) >= max(folder.metrics.steps, default=0):
            yield (
                f"The loss or a gradient of step {max(failed):,} was infinite or NaN, and the same command comes to it "
                f"again. Try a lower optim.base_lr, optim.clip_norm 1 or runtime.precision float32 in another folder."
            )
    yield from (f"While training: {warning}" for warning in told)
    for result in results:
        if warning := result.details.get("warnings"):
            yield f"eval/{result.stem}.json: {warning}"
    for stem, scores in folder.evaluations.items():
        if scores.get("protocol") == "label-free":
            yield from (f"eval/{stem}.json: {warning}" for warning in scores.get("warnings", ()))
    if folder.hardest is not None:
        yield from folder.hardest.warnings
    for found in folder.inside:
        yield from (f"analysis/{found.kind}.npz: {warning}" for warning in found.about.get("warnings", ()))
    pairs = {"encoder": folder.encoder, "classifier": folder.classifier, "segmenter": folder.segmenter}
    for name, about in pairs.items():
        for result in results if "sha256" in about else []:
            if result.details.get(f"{name}_sha256", about["sha256"]) != about["sha256"]:
                yield f"eval/{result.stem}.json was measured with other weights than this run has now. Evaluate again."
    if sha256 := folder.encoder.get("sha256"):
        for name, seen in folder.views.items():
            if seen.sha256 not in ("", sha256):
                yield f"analysis/{name}.npz was made with other weights than this run has now. Make the report again."
        for found in folder.inside:
            if sha256 not in [encoder.get("sha256") for encoder in found.about["encoders"]]:
                yield f"analysis/{found.kind}.npz was measured with other weights than this run has now. Inspect again."


def charts(folder: RunFolder) -> Iterator[Chart]:
    """The curves that the run has: the loss first and large, then learning rate and speed, then what guides masks."""
    metrics = folder.metrics
    for name, (heading, y_label, options) in CURVES.items():
        if metrics.has(name):
            curve = Curve(heading, y_label, *logged(metrics, name), **options)
            if name == "loss" and metrics.has("held_out_loss"):
                held_out = Curve("held-out", "loss", *logged(metrics, "held_out_loss"))
                curve, heading = replace(curve, beside=held_out), "Loss, in training and on held-out images"
            heading += above_knowing_nothing(folder) if name == "loss" else ""
            yield curve_chart(heading, curve, large=name == "loss")


def above_knowing_nothing(folder: RunFolder) -> str:
    """What the loss at the end is worth, beside that of predicting the mean of the target; nothing where none is."""
    columns = folder.metrics.columns
    if "baseline" not in columns:
        return ""
    last, losses = -max(1, len(folder.metrics.steps) // 20), columns.get("loss_target", columns["loss"])
    loss, mean = (float(np.nanmean(values[last:])) for values in (losses, columns["baseline"]))
    if not mean > 0:
        return ""
    squared = look_up(folder.config, "method.target.distance.form") == "l2"
    what = "of its variance is explained" if squared else "less is left"
    share = f"{100 * (1 - loss / mean):.0f} % {what} at the end" if loss < mean else "nothing is explained at the end"
    return f" (predicting the target's mean: {mean:.3g}; {share})"


def logged(metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; of what is measured now and then, those steps alone."""
    seldom = name.startswith(("val_", "held_out_"))
    there = np.isfinite(metrics.columns[name]) if seldom else metrics.steps > 0  # at 0: of given weights
    return metrics.steps[there], metrics.columns[name][there]


def target_moves(config: dict[str, Any]) -> bool:
    """Whether the loss of a run compares with a network that learns, too (a moving average, say): it is no one task."""
    flat = leaves(look_up(config, "method", {}))
    return any(
        value is not None and (name.partition(".")[0] == "momentum" or name.startswith("align"))
        for name, value in flat.items()
    ) or any(value == "ema" for name, value in flat.items() if name.endswith("source"))


def _recent(metrics: Metrics, last: int) -> float | None:
    """The training loss up to a step, as a mean over a twentieth of the lines of the log."""
    there = metrics.columns["loss"][metrics.steps <= last][-max(1, len(metrics.steps) // 20) :]
    return float(np.nanmean(there)) if np.isfinite(there).any() else None


def is_unlabelled(folder: RunFolder) -> bool:
    """Whether the images that the run began with are known to have no labels, or those that pictures were made of."""
    if "facts" in folder.data:
        return look_up(folder.data, "facts.num_classes") is None
    return bool(folder.views) and not any(seen.labelled for seen in folder.views.values())


def without_labels(folder: RunFolder) -> Iterator[str]:
    """What held-out images tell of a run, in sentences that follow from the numbers."""
    metrics = folder.metrics
    if metrics.has("held_out_loss"):
        steps, losses = logged(metrics, "held_out_loss")
        lowest, trained, then = steps[losses.argmin()], None, None
        if metrics.has("loss"):
            trained, then = (_recent(metrics, last) for last in (metrics.steps[-1], lowest))
        latest = "." if trained is None else f"; on training images it is {trained:.3g} at the end."
        yield (
            f"The loss on {folder.held_out:,} held-out images went from {losses[0]:.3g} (step {steps[0]:,}) to "
            f"{losses[-1]:.3g}{latest}"
        )
        if target_moves(folder.config):
            yield "What is predicted moves with the encoder: this loss does not tell better encoders from worse ones."
        elif losses[-1] > losses.min() + 0.02 * abs(losses.min()):
            later = "."
            if trained is not None and then is not None and trained < then:
                later = ": what came later fits the training images alone. Train for fewer steps, or on more images."
            yield f"It was lowest, {losses.min():.3g}, at step {lowest:,}{later}"
    if metrics.has("held_out_rankme"):
        ranks, stds = (logged(metrics, f"held_out_{name}")[1] for name in ("rankme", "std"))
        width = look_up(folder.config, "method.encoder.width", folder.held_out)
        yield (
            f"The effective rank of their features went from {ranks[0]:.3g} to {ranks[-1]:.3g} (at most "
            f"{min(width, folder.held_out)}), their std from {stds[0]:.2g} to {stds[-1]:.2g} of their size; near 1 and "
            f"near 0, the encoder has collapsed."
        )


def label_free(folder: RunFolder) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Figures of features that needed no labels: of which images, headings, rows."""
    for stem, found in folder.evaluations.items():
        who = [name for name in CONTENDERS if isinstance(found.get(name), dict)]
        if found.get("protocol") == "label-free" and who:
            shown = {"": "mean of patches", "class": "class token"}
            rows = [
                [f"{FIGURES[figure]}, {words}", *(f"{value:.3g}".replace("-", "−") for value in values)]
                for view, words in shown.items()
                for figure in FIGURES
                if None not in (values := [look_up(found[name], f"{view}.{figure}".lstrip(".")) for name in who])
            ]
            count = look_up(found, "data.num_test", "?")
            yield f"{count} images of {found.get('dataset', stem)}", ["", *(CONTENDERS[name] for name in who)], rows


def time_parts(folder: RunFolder) -> list[tuple[str, str, float, float]]:
    """Waiting for data, computing, and the rest: name, kind, seconds, share; empty if the metrics do not tell.

    The speed of a logged step covers the steps since the one logged before, but neither the first step after a start
    (loading, compiling) nor saving; these are the rest.
    """
    metrics, total, batch = folder.metrics, total_seconds(folder), folder.config.get("batch_size")
    if not total or not batch or not metrics.has("images_per_s") or not metrics.has("data_wait_s"):
        return []
    images_per_s = metrics.columns["images_per_s"]
    timed = np.isfinite(images_per_s) & (images_per_s > 0)
    num_steps = np.diff(metrics.steps, prepend=min(1, metrics.steps[0]))
    stepping = float((num_steps[timed] * batch / images_per_s[timed]).sum())
    waiting = min(float(np.nansum(metrics.columns["data_wait_s"][timed])), stepping)
    stepping = min(stepping, total)
    parts = [
        ("Waiting for data", "wait", waiting),
        ("Computing steps", "step", max(stepping - waiting, 0.0)),
        ("Starting, first step, saving, held-out images", "rest", max(total - stepping, 0.0)),
    ]
    return [(name, kind, seconds, seconds / total) for name, kind, seconds in parts]


def total_seconds(folder: RunFolder) -> float | None:
    """Training time over all starts."""
    return measured(folder, "wall_s", "time_s", np.nanmax)


def measured(folder: RunFolder, name: str, column: str, of_log: Callable[[np.ndarray], float]) -> float | None:
    """A number of finished.json; while that is not there, what the log has of it."""
    value: float | None = folder.finished.get(name)
    logged = value is None and folder.metrics.has(column)
    return float(of_log(folder.metrics.columns[column])) if logged else value


def settings(folder: RunFolder) -> Iterator[tuple[str, str]]:
    """What was run, by name."""
    config = folder.config
    method, optim = config.get("method", {}), config.get("optim", {})
    yield "Recipe", text_of(config.get("recipe"))
    images = look_up(config, "data.images")
    yield "Data", text_of(look_up(config, "data.source")) + (f" ({images:,} images of it)" if images else "")
    for part in ("encoder", "decoder"):
        sizes = method.get(part, {})
        if {"width", "depth", "heads"} <= set(sizes):
            yield part.capitalize(), f"{sizes['depth']} blocks, {sizes['width']} wide, {sizes['heads']} heads"
    for name, path in (("Teacher", "teacher.source"), ("Guide of the masks", "guide.source")):
        if source := look_up(method, path):
            yield name, str(source)
    if method.get("kind") == "cmt_mae":
        try:
            yield from who_decides(method)
        except ValueError:
            yield "Teacher's weight", "config.yaml does not describe a run of CMT-MAE"
    if (kind := look_up(method, "target.kind")) is not None:
        how = {"patch": ", normalised patch by patch", "layer": ", layer norm of each patch"}
        yield "Target", kind + how.get(look_up(method, "target.normalise") or "", "")
    if "base_lr" in optim:
        rates = f"base learning rate {optim['base_lr']:g} per 256 images, weight decay {optim.get('weight_decay')}"
        yield "Optimiser", f"AdamW, {rates}, warm-up {length(optim.get('warmup'))}"
    yield "Length", f"{length(config.get('duration'))}, batches of {config.get('batch_size', '?')} images"
    yield "Seed", text_of(look_up(config, "runtime.seed"))
    yield from surroundings(folder.environment).items()
    if folder.encoder.get("sha256"):
        yield "Encoder hash", str(folder.encoder["sha256"])[:16]
