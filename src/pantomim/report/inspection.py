"""What `pantomim inspect` found, as pages: the blocks of encoders, and pictures of what CAE's decoder reads."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from pantomim.analysis import LAYERS
from pantomim.analysis.block_facts import BlockFacts
from pantomim.analysis.pictures import PictureRows
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, head_chart, map_chart, share_chart
from pantomim.report.html import fill_template

CHARTS: dict[str, Callable[..., Markup]] = {"heads": head_chart, "shares": share_chart, "map": map_chart}
SIDE = 1.1  # inches of a picture in the PNG


def write_inspection(found: BlockFacts, out: Path) -> Path:
    """Write the page; it needs no other file."""
    analysis = LAYERS[found.kind]
    shown: dict[str, Any] = {"title": analysis.title, "lead": caption(found), "charts": panels(found)}
    shown["notes"] = found.about.get("warnings", [])
    replace_file(out, fill_template("inspection.html", table=analysis.table(found), **shown).encode())
    return out


def write_alignment(found: PictureRows, out: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, a picture (PNG) of the same name; the page needs no other file."""
    title, picture = "What the decoder reads without the regressor", out.with_suffix(".png")
    replace_file(out, fill_template("alignment.html", title=title, alignment=found).encode())
    replace_file(picture, draw(found))
    return out, picture


def draw(found: PictureRows) -> bytes:
    """The same as one PNG: a row a run, its title above it."""
    rows, columns = len(found.rows), len(found.items)
    height, width = found.rows[0].pictures.shape[1:3]
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure((max(columns * SIDE, 5.0), rows * (SIDE * height / width + 0.3)), layout="constrained")
        parts = figure.subfigures(rows, 1, squeeze=False)
        for part, row in zip(parts[:, 0], found.rows, strict=True):
            part.suptitle(": ".join(filter(None, [row.title, row.text])), x=0.01, ha="left", fontsize=8)
            for axes, picture in zip(part.subplots(1, columns, squeeze=False)[0], row.pictures, strict=True):
                axes.imshow(np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture)
                axes.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


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
