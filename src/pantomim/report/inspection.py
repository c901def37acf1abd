"""What the blocks of encoders do, on a page of its own and in the report of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from markupsafe import Markup

from pantomim.analysis import LAYERS
from pantomim.analysis.block_facts import BlockFacts
from pantomim.core.files import replace_file
from pantomim.report.layer_charts import head_chart, map_chart, share_chart
from pantomim.report.template import check_page_path, fill_template

TITLES = {name: analysis.title for name, analysis in LAYERS.items()}
CHARTS: dict[str, Callable[..., Markup]] = {"heads": head_chart, "shares": share_chart, "map": map_chart}


@dataclass(frozen=True)
class Panel:
    """One chart and its title."""

    title: str
    chart: Markup


def write_inspection(found: BlockFacts, out: Path) -> Path:
    """Write the page; it needs no other file.

    Raises:
        ValueError: as `check_page_path`.
        OSError: if the file cannot be written.
    """
    check_page_path("inspect", out)
    headings, rows = LAYERS[found.kind].table(found)
    text = fill_template(
        "inspection.html",
        title=TITLES[found.kind],
        caption=caption(found),
        panels=panels(found),
        headings=headings,
        rows=rows,
        version=metadata.version("pantomim"),
    )
    replace_file(out, text.encode())
    return out


def panels(found: BlockFacts) -> list[Panel]:
    """The charts that an analysis asks for."""
    analysis = LAYERS[found.kind]
    return [Panel(title, CHARTS[analysis.chart](*arguments)) for title, arguments in analysis.panels(found)]


def caption(found: BlockFacts) -> str:
    """What one must know to read the charts."""
    about = found.about
    where = "training images (there is no other split)" if about["split"] == "train" else "held-out images"
    images = f"{about['images']:,} {where} of {about['dataset']}, drawn with seed {about['seed']}."
    return LAYERS[found.kind].caption(about, images)
