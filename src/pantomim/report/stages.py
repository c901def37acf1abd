"""The page about a chain of runs: the curves of all stages one after another, the scores stage by stage."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from pantomim.analysis import LAYERS
from pantomim.analysis.block_facts import BlockFacts
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, Curve, curve_chart
from pantomim.report.folder import RunFolder, look_up, read_run
from pantomim.report.html import duration, fill_template
from pantomim.report.inspection import block_charts
from pantomim.report.page import make_report, source_name, title, total_seconds
from pantomim.report.scores import CONTENDERS, Result, read_results

PLAN = "stages.yaml"
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": ("Loss", {"smooth": True}),
    "lr": ("Learning rate", {"from_zero": True}),
}
REINIT = {
    "full": "Each stage starts with a new student and a new optimiser.",
    "reference": "Each stage starts with a new student that keeps the bias of its patch projection; AdamW's moments "
    "are kept, as in the authors' code.",
    "none": "The student keeps its weights from stage to stage; the optimiser is a new one.",
}
Scores = dict[str, Result]  # of a stage, by file


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
    # What lies in the chain's own folder is of the last stage's encoder.
    whole = read_run(path) if (path / "config.yaml").is_file() else None
    results: list[Scores] = []
    for stage in stages:
        of_chain = whole.evaluations if whole and stage is stages[-1] else {}
        results.append({result.stem: result for result in read_results(of_chain | stage.evaluations)})
    keys = list(dict.fromkeys(key for found in results for key in found))
    names = [_heading(key, results) for key in keys]
    return fill_template(
        "stages.html",
        title=f"{title(stages[0])}, in stages",
        lead=f"{len(stages)} of {plan['stages']} stages on {source_name(stages[0])}; the student of each is the "
        f"teacher of the next. {REINIT.get(plan['reinit'], '')}",
        charts=[*_curves(stages), *_scores(keys, results)],
        inside=block_charts(side_by_side(_inside(stages, whole)), named=True),
        headings=["Stage", "Teacher", "Steps", "Time", "Last loss", *names],
        rows=[*map(_row, range(len(stages)), stages, [keys] * len(stages), results), *_baselines(keys, results)],
        scored=bool(keys),
        command=f"pantomim pretrain --config {path / PLAN} --out {path} --evaluate LABELLED",
    )


def _inside(stages: list[RunFolder], whole: RunFolder | None) -> list[list[BlockFacts]]:
    """What the blocks of each stage's encoder do."""
    found = [list(stage.inside) for stage in stages]
    last, sha256 = {facts.kind for facts in found[-1]}, stages[-1].encoder.get("sha256")
    for facts in whole.inside if whole else ():
        if facts.kind not in last and sha256 in [encoder.get("sha256") for encoder in facts.about["encoders"]]:
            found[-1].append(facts)
    return found


def side_by_side(found: list[list[BlockFacts]]) -> list[BlockFacts]:
    """By analysis, all stages that were measured on the same images, to be drawn with the same axes.

    Maps of CKA are each stage's own.
    """
    alike: dict[tuple[str, ...], list[tuple[int, BlockFacts]]] = {}
    for kind in LAYERS:
        for number, stage in enumerate(found):
            for facts in (facts for facts in stage if facts.kind == kind):
                images = str({name: value for name, value in facts.about.items() if name != "encoders"})
                alike.setdefault((kind, images, str(number) * (kind == "cka")), []).append((number, facts))
    joined = []
    for measured in alike.values():
        first = measured[0][1]
        encoders = [facts.about["encoders"][0] | {"name": f"stage {number}"} for number, facts in measured]
        arrays = {
            f"{name.removesuffix('_0')}_{place}": value
            for place, (_, facts) in enumerate(measured)
            for name, value in facts.arrays.items()
        }
        joined.append(
            BlockFacts(
                first.kind, first.arrays if first.kind == "cka" else arrays, first.about | {"encoders": encoders}
            )
        )
    return joined


def _curves(stages: list[RunFolder]) -> list[Chart]:
    """The curves of all stages on one axis of steps, with a gap between two stages."""
    charts = []
    for name, (heading, options) in CURVES.items():
        steps: list[float] = []
        values: list[float] = []
        before = 0
        for stage in stages:
            if stage.metrics.has(name):
                steps += [*(before + stage.metrics.steps), before + stage.metrics.steps[-1]]
                values += [*stage.metrics.columns[name], np.nan]  # the line breaks between stages
                before += int(stage.metrics.steps[-1])
        if before:
            curve = Curve(heading, heading.lower(), np.array(steps[:-1]), np.array(values[:-1]), **options)
            charts.append(curve_chart(f"{heading}, all stages", curve, large=name == "loss"))
    return charts


def _scores(keys: list[str], results: list[Scores]) -> list[Chart]:
    """The trained encoder's score over the stages, in percent; where there is more than one stage to compare."""
    charts = []
    for key in keys:
        found = [result[key].headline.found.get("trained") if key in result else None for result in results]
        shares = np.array([score.value if score else np.nan for score in found])
        if np.isfinite(shares).sum() > 1:
            heading = _heading(key, results)
            curve = Curve(heading, "%", np.arange(len(shares)), 100 * shares, x_label="stage")
            charts.append(curve_chart(heading, curve))
    return charts


def _heading(key: str, results: list[Scores]) -> str:
    result = next(found[key] for found in results if key in found)
    return f"{result.protocol}, {result.headline.label}, {result.data}"


def _row(number: int, stage: RunFolder, keys: list[str], found: Scores) -> list[str]:
    """A stage in the table: its page, its teacher, its length, its last loss, its scores."""
    method, finished = look_up(stage.config, "method", {}), stage.finished
    teacher = look_up(method, "teacher.source") or look_up(method, "target.teacher.source", "?")
    seconds, loss = total_seconds(stage), finished.get("loss")
    scores = [found[key].headline.scores["trained"] if key in found else None for key in keys]
    return [
        Markup('<a href="{}/report.html">stage {}</a>').format(stage.path.name, number),
        f"stage {number - 1}" if number else str(teacher),
        f"{finished['steps']:,}" if "steps" in finished else "not finished",
        "" if seconds is None else duration(seconds),
        "" if loss is None else f"{loss:.4f}",
        *(score.text if score else "" for score in scores),
    ]


def _baselines(keys: list[str], results: list[Scores]) -> list[list[Any]]:
    """The untrained encoder and raw pixels, which are the same for all stages: measured beside one of them."""
    rows = []
    for who in [who for who in CONTENDERS if who != "trained"]:
        scores = [
            next((s.text for found in results if key in found and (s := found[key].headline.scores[who])), "")
            for key in keys
        ]
        if any(scores):
            rows.append([CONTENDERS[who], "", "", "", "", *scores])
    return rows
