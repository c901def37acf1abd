"""The page about a chain of runs: the curves of all stages one after another, the scores stage by stage."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pantomim.analysis import LAYERS
from pantomim.analysis.block_facts import BlockFacts
from pantomim.core.files import replace_file
from pantomim.core.reading import read_yaml
from pantomim.report.charts import Chart, Curve, curve_chart
from pantomim.report.folder import RunFolder, look_up, read_run
from pantomim.report.html import duration, fill_template
from pantomim.report.inspection import block_charts
from pantomim.report.measures import Arm, read_measures, score_chart, score_rows
from pantomim.report.page import CURVES, make_report, source_name, title, total_seconds

PLAN = "stages.yaml"
REINIT = {
    "full": "Each stage starts with a new student and a new optimiser.",
    "reference": "Each stage starts with a new student that keeps the bias of its patch projection; AdamW's moments "
    "are kept, as in the authors' code.",
    "none": "The student keeps its weights from stage to stage; the optimiser is a new one.",
}


def is_chain(run: str | Path) -> bool:
    """Whether a folder is that of a chain of runs."""
    return (Path(run) / PLAN).is_file()


def stage_folders(run: str | Path) -> list[Path]:
    """The folders of the stages that have begun, in order."""
    folders = [Path(run) / f"stage-{number}" for number in range(len(list(Path(run).glob("stage-*"))))]
    return [folder for folder in folders if (folder / "config.yaml").is_file()]


def make_stages_report(run: str | Path, out: Path | None = None) -> Path:
    """Write `RUN/report.html` about all stages, and the page of each stage in its own folder; or `out` alone."""
    page = out or Path(run) / "report.html"
    text = stages_report_of(run)
    for folder in stage_folders(run) if out is None else ():
        make_report(folder)
    replace_file(page, text.encode(errors="replace"))
    return page


def stages_report_of(run: str | Path) -> str:
    """The page of a chain of runs as HTML."""
    if not (folders := stage_folders(run)):
        raise ValueError(f"report.run must have a stage; got {run}, which has none yet. Run `pantomim pretrain` on.")
    return render(Path(run), list(map(read_run, folders)))


def render(path: Path, stages: list[RunFolder]) -> str:
    """The page as HTML."""
    plan = read_yaml(path / PLAN)
    # What lies in the chain's own folder is of the last stage's encoder.
    whole = read_run(path) if (path / "config.yaml").is_file() else None
    evaluations = [stage.evaluations for stage in stages]
    inside = [list(stage.inside) for stage in stages]
    if whole:
        evaluations[-1] = whole.evaluations | evaluations[-1]
        kinds, sha256 = {facts.kind for facts in inside[-1]}, stages[-1].encoder.get("sha256")
        of_last = [facts for facts in whole.inside if sha256 in [it.get("sha256") for it in facts.about["encoders"]]]
        inside[-1] += [facts for facts in of_last if facts.kind not in kinds]
    arms = [
        Arm(f"stage {number}", {0: replace(stage, evaluations=found)})
        for number, (stage, found) in enumerate(zip(stages, evaluations, strict=True))
    ]
    measures = [measure for measure in read_measures(arms) if measure.main]
    names = [arm.name for arm in arms]
    findings = [measure.finding(names) for measure in measures if measure.better]
    return fill_template(
        "stages.html",
        title=f"{title(stages[0])}, in stages",
        lead=findings[0] if findings else f"{len(stages)} of {plan['stages']} stages; none of them is scored yet.",
        findings=findings[1:],
        about=f"{len(stages)} of {plan['stages']} stages on {source_name(stages[0])}; the student of each is the "
        f"teacher of the next. {REINIT.get(plan['reinit'], '')}",
        charts=list(_curves(stages)),
        dots=[score_chart(measure, names) for measure in measures],
        inside=block_charts(side_by_side(inside), named=True),
        rows=[_row(number, stage) for number, stage in enumerate(stages)],
        scores=score_rows(names, measures),
        scored=bool(measures),
        command=f"pantomim pretrain --config {path / PLAN} --out {path} --evaluate LABELLED",
    )


def side_by_side(found: list[list[BlockFacts]]) -> list[BlockFacts]:
    """By analysis, stages measured on the same images, to share axes; maps of CKA are each stage's own."""
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
        arrays = dict(first.arrays) if first.kind == "cka" else {}
        for place, (_, facts) in enumerate(measured if first.kind != "cka" else ()):
            arrays |= {f"{name.removesuffix('_0')}_{place}": value for name, value in facts.arrays.items()}
        joined.append(BlockFacts(first.kind, arrays, first.about | {"encoders": encoders}))
    return joined


def _curves(stages: list[RunFolder]) -> Iterator[Chart]:
    """The curves of all stages on one axis of steps, with a gap between two stages."""
    for name in ("loss", "lr"):
        heading, y_label, options = CURVES[name]
        steps: list[float] = []
        values: list[float] = []
        before = 0
        for metrics in (stage.metrics for stage in stages if stage.metrics.has(name)):
            steps += [*(before + metrics.steps), before + metrics.steps[-1]]
            values += [*metrics.columns[name], np.nan]  # the line breaks between stages
            before += int(metrics.steps[-1])
        if before:
            options = options | {"cut_start": False}  # every stage has a steep start
            curve = Curve(heading, y_label, np.array(steps[:-1]), np.array(values[:-1]), **options)
            yield curve_chart(f"{heading}, all stages", curve, large=name == "loss")


def _row(number: int, stage: RunFolder) -> list[str]:
    method, finished = look_up(stage.config, "method", {}), stage.finished
    teacher = look_up(method, "teacher.source") or look_up(method, "target.teacher.source", "?")
    seconds, loss = total_seconds(stage), finished.get("loss")
    return [
        Markup('<a href="{}/report.html">stage {}</a>').format(stage.path.name, number),
        f"stage {number - 1}" if number else str(teacher),
        f"{finished['steps']:,}" if "steps" in finished else "not finished",
        "" if seconds is None else duration(seconds),
        "" if loss is None else f"{loss:.4f}",
    ]
