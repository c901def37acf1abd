"""The page about a chain of runs: the curves of all stages one after another, the scores stage by stage."""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pantomim.analysis.block_facts import BlockFacts
from pantomim.core.files import replace_file
from pantomim.report.charts import Curve, line_chart
from pantomim.report.folder import RunFolder, look_up, read_run
from pantomim.report.inspection import TITLES, caption, panels
from pantomim.report.page import Chart, duration, make_report, source_name, title, total_seconds
from pantomim.report.scores import CONTENDERS, Result, read_results
from pantomim.report.template import fill_template

PLAN = "stages.yaml"
CURVES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "loss": ("Loss", "loss", {"smooth": True}),
    "lr": ("Learning rate", "learning rate", {"from_zero": True}),
}
REINIT = {
    "full": "Each stage begins with a new student and a new optimiser.",
    "reference": "Each stage begins with a new student that keeps the bias of its patch projection; AdamW's moments go "
    "on, as in the authors' code.",
    "none": "The student keeps its weights from stage to stage; the optimiser is a new one.",
}


def is_chain(run: str | Path) -> bool:
    """Whether a folder is that of a chain of runs."""
    return (Path(run) / PLAN).is_file()


def make_stages_report(run: str | Path) -> Path:
    """Write `RUN/report.html` about all stages, and the page of each stage in its own folder.

    Raises:
        ValueError: if the folder has no stage yet.
    """
    path = Path(run)
    folders = [path / f"stage-{number}" for number in range(len(list(path.glob("stage-*"))))]
    stages = [read_run(folder) for folder in folders if (folder / "config.yaml").is_file()]
    if not stages:
        raise ValueError(f"report.run must have a stage; got {path}, which has none yet. Run `pantomim pretrain` on.")
    for stage in stages:
        make_report(stage.path)
    page = path / "report.html"
    replace_file(page, render(path, stages).encode())
    return page


def render(path: Path, stages: list[RunFolder]) -> str:
    """The page as HTML."""
    plan = yaml.safe_load((path / PLAN).read_text(encoding="utf-8"))
    results = [_results(path, stages, number) for number in range(len(stages))]
    keys = list(dict.fromkeys(key for found in results for key in found))
    return fill_template(
        "stages.html",
        title=f"{title(stages[0])}, in stages",
        caption=f"{len(stages)} of {plan['stages']} stages on {source_name(stages[0])}; the student of each is the "
        f"teacher of the next. {REINIT.get(plan['reinit'], '')}",
        charts=[*_curves(stages), *_scores(keys, results)],
        inside=[
            (TITLES[found.kind], panels(found), caption(found))
            for kind in TITLES
            for found in beside_each_other(kind, _inside(path, stages))
        ],
        headings=[_heading(key, results) for key in keys],
        rows=[_row(number, stage, keys, results[number]) for number, stage in enumerate(stages)],
        baselines=_baselines(keys, results),
        command=f"pantomim pretrain --config {path / PLAN} --out {path} --evaluate LABELLED",
        version=metadata.version("pantomim"),
    )


def _results(path: Path, stages: list[RunFolder], number: int) -> dict[str, Result]:
    """Of a stage, by file; those in the chain's own folder are of the last stage's encoder."""
    found = dict(stages[number].evaluations)
    if number == len(stages) - 1 and (path / "config.yaml").is_file():
        found |= {stem: result for stem, result in read_run(path).evaluations.items() if stem not in found}
    return {result.stem: result for result in read_results(found)}


def _inside(path: Path, stages: list[RunFolder]) -> list[list[BlockFacts]]:
    """What the blocks of each stage's encoder do; what lies in the chain's own folder is of the last stage."""
    found = [list(stage.inside) for stage in stages]
    if (path / "config.yaml").is_file():
        last, sha256 = {facts.kind for facts in found[-1]}, stages[-1].encoder.get("sha256")
        for facts in read_run(path).inside:
            if facts.kind not in last and sha256 in [encoder.get("sha256") for encoder in facts.about["encoders"]]:
                found[-1].append(facts)
    return found


def beside_each_other(kind: str, found: list[list[BlockFacts]]) -> list[BlockFacts]:
    """One analysis of all stages that were measured on the same images, to be drawn with the same axes.

    Args:
        kind: Which analysis.
        found: Those of each stage, from stage 0 on. Maps of CKA are each stage's own.
    """
    alike: dict[str, list[tuple[int, BlockFacts]]] = {}
    for number, stage in enumerate(found):
        for facts in stage:
            if facts.kind == kind:
                images = {name: value for name, value in facts.about.items() if name != "encoders"}
                key = f"{number} {images}" if kind == "cka" else str(images)
                alike.setdefault(key, []).append((number, facts))
    joined = []
    for measured in alike.values():
        encoders = [facts.about["encoders"][0] | {"name": f"stage {number}"} for number, facts in measured]
        about = measured[0][1].about | {"encoders": encoders}
        if kind == "cka":
            arrays = measured[0][1].arrays
        else:
            arrays = {
                f"{name.rpartition('_')[0]}_{place}": value
                for place, (_, facts) in enumerate(measured)
                for name, value in facts.arrays.items()
            }
        joined.append(BlockFacts(kind, arrays, about))
    return joined


def _curves(stages: list[RunFolder]) -> list[Chart]:
    """Loss and learning rate of all stages, one after another."""
    charts = []
    for name, (heading, label, options) in CURVES.items():
        steps: list[float] = []
        values: list[float] = []
        before = 0
        for stage in stages:
            if stage.metrics.has(name):
                steps += [*(stage.metrics.steps + before), before + int(stage.metrics.steps[-1])]
                values += [*stage.metrics.columns[name], np.nan]  # a gap between stages
                before += int(stage.metrics.steps[-1])
        if before:
            curve = Curve(heading, label, np.array(steps[:-1]), np.array(values[:-1]), **options)
            wide = line_chart(curve, 880, 290) if name == "loss" else line_chart(curve, 430, 220)
            charts.append(Chart(f"{heading}, all stages", wide, line_chart(curve, 430, 240)))
    return charts


def _scores(keys: list[str], results: list[dict[str, Result]]) -> list[Chart]:
    """The trained encoder's score over the stages, in percent; where there is more than one stage to compare."""
    charts = []
    for key in keys:
        shares = [_trained(found.get(key)) for found in results]
        if sum(np.isfinite(shares)) > 1:
            heading = _heading(key, results)
            curve = Curve(heading, "%", np.arange(len(shares)), 100 * np.array(shares), x_label="stage")
            charts.append(Chart(heading, line_chart(curve, 430, 220), line_chart(curve, 430, 240)))
    return charts


def _heading(key: str, results: list[dict[str, Result]]) -> str:
    result = next(found[key] for found in results if key in found)
    return f"{result.protocol}, {result.headline.label}, {result.data}"


def _trained(result: Result | None) -> float:
    score = None if result is None else result.headline.scores["trained"]
    return float("nan") if score is None else score.value


def _row(number: int, stage: RunFolder, keys: list[str], found: dict[str, Result]) -> dict[str, Any]:
    """A stage in the table: its page, its teacher, its length, its last loss, its scores."""
    config = stage.config
    target = look_up(config, "method.target.teacher", {})
    teacher = look_up(config, "method.teacher.source") or look_up({"teacher": target}, "teacher.source", "?")
    loss = stage.finished.get("loss")
    seconds = total_seconds(stage)
    scores = [found[key].headline.scores["trained"] if key in found else None for key in keys]
    return {
        "name": f"stage {number}",
        "link": f"{stage.path.name}/report.html",
        "teacher": f"stage {number - 1}" if number else str(teacher),
        "steps": f"{stage.finished['steps']:,}" if "steps" in stage.finished else "not finished",
        "time": duration(seconds) if seconds is not None else "",
        "loss": f"{loss:.4f}" if loss is not None else "",
        "scores": [score.text if score else "" for score in scores],
    }


def _baselines(keys: list[str], results: list[dict[str, Result]]) -> list[tuple[str, list[str]]]:
    """Untrained twin and raw pixels, which are the same for all stages: measured beside one of them."""
    rows = []
    for who, name in CONTENDERS.items():
        if who == "trained":
            continue
        scores = [
            next((s.text for found in results if key in found and (s := found[key].headline.scores[who])), "")
            for key in keys
        ]
        if any(scores):
            rows.append((name, scores))
    return rows
