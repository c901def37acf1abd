"""What the blocks of encoders do, on a page of its own and in the report of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from pantomim.analysis import LAYERS
from pantomim.analysis.block_facts import BlockFacts
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, head_chart, map_chart, share_chart
from pantomim.report.html import fill_template

CHARTS: dict[str, Callable[..., Markup]] = {"heads": head_chart, "shares": share_chart, "map": map_chart}


def write_inspection(found: BlockFacts, out: Path) -> Path:
    """Write the page; it needs no other file."""
    analysis = LAYERS[found.kind]
    headings, rows = analysis.table(found)
    text = fill_template(
        "inspection.html",
        title=analysis.title,
        lead=caption(found),
        charts=panels(found),
        headings=headings,
        rows=rows,
    )
    replace_file(out, text.encode())
    return out


def block_charts(inside: Sequence[BlockFacts], *, named: bool = False) -> list[tuple[Chart, str]]:
    """The charts of several analyses, each with what it shows in its title; the last one of each has the caption.

    Encoders are `named` in the titles, else only where there are several.
    """
    charts = []
    for found in inside:
        shown = panels(found)
        for number, chart in enumerate(shown, 1):
            title = LAYERS[found.kind].title + (f": {chart.title}" if named or len(shown) > 1 else "")
            charts.append((Chart(title, chart.wide), caption(found) if number == len(shown) else ""))
    return charts


def panels(found: BlockFacts) -> list[Chart]:
    """The charts that an analysis asks for."""
    analysis = LAYERS[found.kind]
    return [Chart(title, CHARTS[analysis.chart](*arguments)) for title, arguments in analysis.panels(found)]


def caption(found: BlockFacts) -> str:
    """What one must know to read the charts."""
    about = found.about
    where = "training images (there is no other split)" if about["split"] == "train" else "held-out images"
    images = f"{about['images']:,} {where} of {about['dataset']}, drawn with seed {about['seed']}."
    return LAYERS[found.kind].caption(about, images)
