"""The alignment picture: a page, and the same as one PNG, of what `analysis.alignment` found."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pantomim.analysis.pictures import PictureRows
from pantomim.core.files import replace_file
from pantomim.report.folder import Alignment
from pantomim.report.html import alignment_strips, fill_template

SIDE = 1.1  # inches of a picture in the PNG


def write_alignment(found: PictureRows, out: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, a picture (PNG) of the same name; the page needs no other file."""
    rows = [(row.title, row.text, row.pictures) for row in found.rows]
    shown = alignment_strips(Alignment(rows, list(found.items), found.caption))
    text = fill_template("alignment.html", title="What the decoder reads without the regressor", alignment=shown)
    picture = out.with_suffix(".png")
    replace_file(out, text.encode())
    replace_file(picture, draw(found))
    return out, picture


def draw(found: PictureRows) -> bytes:
    """The same as one PNG: a row a run, its title above it."""
    rows, columns = len(found.rows), len(found.items)
    height, width = found.rows[0].pictures.shape[1:3]
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure((max(columns * SIDE, 5.0), rows * (SIDE * height / width + 0.3)), layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(rows, 1, squeeze=False)
        for part, row in zip(parts[:, 0], found.rows, strict=True):
            part.suptitle(": ".join(filter(None, [row.title, row.text])), x=0.01, ha="left", fontsize=8)
            for axes, picture in zip(part.subplots(1, columns, squeeze=False)[0], row.pictures, strict=True):
                axes.imshow(np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture)
                axes.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
