"""What `pantomim inspect` found, as pages: the blocks of encoders, and pictures."""

import io
import textwrap
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
WIDTH, MOST = 12.0, 1.6  # inches: of a PNG or SVG, and of a picture of several


def write_inspection(found: BlockFacts, out: Path) -> Path:
    """Write the page; it needs no other file."""
    analysis = LAYERS[found.kind]
    shown: dict[str, Any] = {"title": analysis.title, "lead": analysis.finding(found), "charts": panels(found)}
    shown |= {"caption": caption(found), "notes": found.about.get("warnings", [])}
    replace_file(out, fill_template("inspection.html", table=analysis.table(found), **shown).encode())
    return out


def write_views(found: Sequence[PictureRows], title: str, out: Path) -> Path:
    """Write what was seen as a page that needs no other file or, by the ending, as PNG or SVG; gives the path."""
    kind = out.suffix.lower().lstrip(".")
    if kind in ("png", "svg"):
        data = draw(found, title, kind)
    else:
        data = fill_template("views.html", title=title, found=found).encode(errors="replace")
    replace_file(out, data)
    return out


def draw(found: Sequence[PictureRows], title: str, kind: str) -> bytes:
    """The pictures with their titles and labels as PNG or SVG: a line or more for each row."""
    lines: list[tuple[str, float, Sequence[tuple[np.ndarray, str]], int]] = []  # title, height, pictures, columns
    for seen in found:
        told = filter(None, (title, seen.encoder and f"({seen.encoder}).", seen.lead, *seen.warnings))
        lines.append((textwrap.fill(" ".join(told), 170), 0.5, (), 1))
        for row in seen.rows:
            height, width = row.pictures.shape[1:3]
            columns = max(seen.across // max(round(width / height), 1), 1) if seen.across > 1 else 1
            pairs = list(zip(row.pictures, row.labels or [""] * len(row.pictures), strict=True))
            for start in range(0, len(pairs), columns):
                name = ": ".join(filter(None, (row.title, row.text))) if start == 0 else ""
                tall = min(WIDTH / columns, MOST) * height / width if columns > 1 else WIDTH * height / width
                lines.append((name, tall + (0.95 if row.labels else 0.3), pairs[start : start + columns], columns))
    with matplotlib.rc_context({"font.size": 7, "svg.hashsalt": title}):
        figure = Figure((WIDTH, sum(line[1] for line in lines)), facecolor="white", layout="constrained")
        parts = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=[line[1] for line in lines])[:, 0]
        for part, (name, _, shown, columns) in zip(parts, lines, strict=True):
            part.suptitle(name, x=0.005, ha="left", fontsize=8 if shown else 9)
            cells = part.subplots(1, columns, squeeze=False)[0] if shown else ()
            for axes, (picture, label) in zip(cells, shown, strict=False):
                axes.imshow(np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture)
                words = "\n".join(textwrap.fill(each, 170 // columns) for each in label.split(" · "))
                axes.set_xlabel(words, loc="left")
        for axes in figure.axes:
            axes.set(xticks=[], yticks=[], anchor="W")
            axes.spines[:].set_visible(False)
        plain = {"Software": None} if kind == "png" else {"Date": None}
        figure.savefig(buffer := io.BytesIO(), format=kind, dpi=150, metadata=plain)
    return buffer.getvalue()


def block_charts(inside: Sequence[BlockFacts], *, named: bool = False) -> list[tuple[Chart, str]]:
    """The charts of analyses with their titles, the last of each with its caption; encoders `named` even if alone."""
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
    images = f"{about['images']:,} images of {about['dataset']}, drawn with seed {about['seed']}."
    return LAYERS[found.kind].caption(about, images)
