"""The gallery of masks: strategies side by side, what each masks, and the numbers behind it; a page and a picture."""

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from pantomim.analysis.masks import MaskSurvey, Photo
from pantomim.core.files import replace_file
from pantomim.masking import strategy_of
from pantomim.report.charts import LOWEST, Chart, power_ticks, spectrum_chart
from pantomim.report.html import data_uri, fill_template

INK, SOFT, GROUND, VEIL = "#1c2025", "#5b636d", "#e3e6ea", "#cfd4da"
COLUMN, CHART, ROOM = 2.3, 3.2, 0.35  # inches: a strategy's width, height of the spectra, room below a picture
RULED = 40  # patches: on larger grids no lines are drawn between them
PER_ROW = 6  # strategies
ON_ONE_PHOTO = 6
PHOTO = 160  # pixels: side of a square photo on the page
SIZES = ((880, 380), (430, 380))  # wide and narrow
# What the table has of each strategy: heading, statistic and decimals.
COLUMNS = (
    ("masked patches", "num_masked", 1), ("visible clusters", "num_clusters", 1),
    ("largest cluster", "largest_cluster", 1), ("visible neighbours", "neighbours", 2),
    ("mean distance", "mean_distance", 2), ("largest distance", "max_distance", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Gallery:
    """What a gallery shows; with one photo, several masks of each strategy are laid on it."""

    surveys: Sequence[MaskSurvey]  # one for each strategy, all on the same grid
    ratio: float  # share of masked patches that was asked for
    seed: int  # of the draws
    samples: int  # masks shown of each
    photos: Sequence[Photo]  # to lay masks on
    command: str  # makes this gallery again

    @property
    def brightest(self) -> float:
        """The mean visibility from which colour is full: twice the usual one, so that strategies can be compared."""
        return min(1.0, 2 * (1 - self.ratio))

    @property
    def overlays(self) -> list[tuple[Photo, int]]:
        """Which photo lies under which mask of every strategy."""
        if len(self.photos) == 1:
            return [(self.photos[0], index) for index in range(min(self.samples, ON_ONE_PHOTO))]
        return [(photo, index) for index, photo in enumerate(self.photos)]


def write_gallery(gallery: Gallery, out: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, a picture (PNG) of the same name; the page needs no other file."""
    picture = out.with_suffix(".png")
    replace_file(out, render(gallery).encode())
    replace_file(picture, draw_poster(gallery.surveys, gallery.samples, gallery.overlays, gallery.brightest))
    return out, picture


def render(gallery: Gallery) -> str:
    """The page as HTML."""
    rows, columns = gallery.surveys[0].grid
    spectra = [(survey.name, strategy_of(survey.name).colour, survey.spectrum) for survey in gallery.surveys]
    charts = [spectrum_chart(spectra, max(rows, columns), size) for size in SIZES]
    return fill_template(
        "masks.html",
        ("page.css", "masks.css"),
        lead=f"{usual_counts(gallery.surveys)} of {rows * columns:,} patches on a grid of {rows} × {columns}. Coloured "
        f"patches stay visible, gray ones are masked.",
        gallery=gallery,
        rows=rows,
        columns=columns,
        photo_width=PHOTO * math.sqrt(columns / rows),
        draws=len(gallery.surveys[0].visible),
        per_row=math.ceil(len(gallery.surveys) / math.ceil(len(gallery.surveys) / PER_ROW)),
        photos=[(photo.name, Markup(data_uri(photo.pixels, "JPEG"))) for photo in gallery.photos],
        headings=["strategy", *(heading for heading, _, _ in COLUMNS)],
        chart=Chart("Power spectrum of the masks", *charts),
        **{tool.__name__: tool for tool in (strategy_of, numbers, mask_svg, veil_svg, gray, heat)},
    )


def numbers(survey: MaskSurvey) -> list[tuple[str, str]]:
    """The row of the table: mean and std over the masks, in the order of `COLUMNS`."""
    texts = []
    for _, name, digits in COLUMNS:
        values = survey.num_masked if name == "num_masked" else getattr(survey.statistics, name)
        same = bool(np.ptp(values) == 0)
        shown = 0 if same and name == "num_masked" else digits
        texts.append((f"{values.mean():.{shown}f}", "" if same else f"±{values.std():.{digits}f}"))
    return texts


def mask_svg(visible: np.ndarray, name: str) -> Markup:
    """A mask: visible patches in the strategy's colour, masked ones as the ground."""
    cells = "".join(f"M{column} {row}h1v1h-1z" for row, column in np.argwhere(visible))
    return _svg(visible.shape, "mask" if max(visible.shape) <= RULED else "mask fine", name, cells)


def veil_svg(visible: np.ndarray, name: str) -> Markup:
    """What covers the masked patches of a photo, row by row in runs."""
    runs = []
    for row, masked in enumerate(~visible):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
        runs += [f"M{start} {row}h{end - start}v1h{start - end}z" for start, end in edges.reshape(-1, 2)]
    return _svg(visible.shape, "veil", name, "".join(runs))


def gray(values: np.ndarray) -> np.ndarray:
    """A field as an 8-bit picture (H, W, 1) from its lowest value, black, to its highest, white."""
    low, high = float(values.min()), float(values.max())
    return np.rint(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)[:, :, None]


def heat(shares: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Shares of full colour as opacity of that colour (H, W, 4), for light and for dark pages; full from 1 on."""
    opacity = np.rint(255 * shares.clip(max=1.0)).astype(np.uint8)
    return np.dstack([*(np.full_like(opacity, value) for value in rgb), opacity])


def _svg(grid: tuple[int, ...], kind: str, name: str, path: str) -> Markup:
    rows, columns = grid
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><path d="{}"/></svg>').format(
        kind, columns, rows, name, path
    )


def draw_poster(
    surveys: Sequence[MaskSurvey], samples: int, overlays: Sequence[tuple[Photo, int]], brightest: float
) -> bytes:
    """As a PNG: a column a strategy, up to two samples and photos, colour full from `brightest`; spectra below."""
    rows, columns = surveys[0].grid
    looks: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(_cells, (index,)) for index in range(min(samples, 2))]
    looks += [(_photo, overlay) for overlay in overlays[:2]]
    looks += [(_pattern, ())] * any(survey.pattern for survey in surveys) + [(_heat, (brightest,))]
    pictures = len(looks) * (COLUMN * min(rows / columns, 2.0) + ROOM) + 1.5
    wide = max(len(surveys), 4)
    figure = Figure((COLUMN * wide, pictures + CHART), dpi=130, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(pictures, CHART))[:, 0]
    about = (
        f"{usual_counts(surveys)} of {rows * columns:,} patches on a grid of {rows} × {columns}; coloured ones stay "
        f"visible.\nMean visibility: full colour from {100 * brightest:.0f} % on."
    )
    figure.suptitle("What each strategy masks", x=0.015, ha="left", color=INK, size=20, weight="bold")
    top.suptitle(about, x=0.015, ha="left", color=SOFT, size=10)
    grid = top.subplots(len(looks), wide, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, survey in zip(grid.T, surveys, strict=False):
        color = strategy_of(survey.name).colour
        for axes, (draw, arguments) in zip(column, looks, strict=True):
            draw(axes, survey, color, *arguments)
        column[0].set_title(survey.name, loc="left", color=color, size=15, weight="bold")
    _spectra(bottom.subplots(), surveys)
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def usual_counts(surveys: Sequence[MaskSurvey]) -> str:
    """How many patches these strategies mask, as text; the median where the count varies."""
    counts = sorted({round(float(np.median(survey.num_masked))) for survey in surveys})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _picture(axes: Axes, values: np.ndarray, caption: str = "", **style: object) -> None:
    axes.imshow(values, interpolation="nearest", **style)  # type: ignore[arg-type]
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(caption, loc="left", color=SOFT, size=9, linespacing=1.5)


def _cells(axes: Axes, survey: MaskSurvey, color: str, which: int) -> None:
    _picture(axes, survey.visible[which], cmap=ListedColormap([GROUND, color]), vmin=0, vmax=1)
    rows, columns = survey.grid
    if max(rows, columns) <= RULED:
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color=GROUND, linewidth=0.8)
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color=GROUND, linewidth=0.8)


def _photo(axes: Axes, survey: MaskSurvey, color: str, photo: Photo, which: int) -> None:
    scale = photo.pixels.shape[0] // survey.grid[0]
    masked = np.kron(~survey.visible[which], np.ones((scale, scale), dtype=bool))
    pixels = np.broadcast_to(photo.pixels, (*photo.pixels.shape[:2], 3)) / 255.0
    _picture(axes, np.where(masked[:, :, None], np.array(to_rgb(VEIL)), pixels))


def _pattern(axes: Axes, survey: MaskSurvey, color: str) -> None:
    pattern = survey.pattern
    if pattern is None:
        words = f"–\n{textwrap.fill(strategy_of(survey.name).drawn, 28)}"
        axes.text(0.5, 0.5, words, color=SOFT, size=8, ha="center", va="center")
        return
    _picture(axes, pattern.values, "pattern and window", cmap="gray")
    rows, columns = survey.grid
    for edge, width in (("white", 3.5), (color, 2.0)):
        corner = (pattern.left - 0.5, pattern.top - 0.5)
        axes.add_patch(Rectangle(corner, columns, rows, fill=False, edgecolor=edge, linewidth=width))


def _heat(axes: Axes, survey: MaskSurvey, color: str, brightest: float) -> None:
    """Mean visibility, with the numbers of the table below it."""
    found, masked, shares = survey.statistics, survey.num_masked, 100 * survey.visibility
    numbers = (
        f"mean visibility {shares.min():.1f} to {shares.max():.1f} %\n"
        f"{masked.mean():.{int(np.ptp(masked) > 0)}f} of {survey.visible[0].size} masked\n"
        f"{found.num_clusters.mean():.1f} clusters, largest {found.largest_cluster.mean():.1f}\n"
        f"{found.neighbours.mean():.2f} visible neighbours\n"
        f"distance {found.mean_distance.mean():.2f}, largest {found.max_distance.mean():.1f}"
    )
    shades = LinearSegmentedColormap.from_list("visibility", [GROUND, color])
    _picture(axes, survey.visibility, numbers, cmap=shades, vmin=0, vmax=brightest)


def _spectra(axes: Axes, surveys: Sequence[MaskSurvey]) -> None:
    powers = np.stack([survey.spectrum.clip(min=LOWEST) for survey in surveys])
    frequency = np.arange(1, powers.shape[1] + 1) / max(surveys[0].grid)
    axes.axhline(1.0, color=SOFT, linewidth=0.8, linestyle=(0, (5, 4)))
    for survey, power in sorted(zip(surveys, powers, strict=True), key=lambda line: -line[1][-1]):  # as the legend
        axes.plot(frequency, power, color=strategy_of(survey.name).colour, lw=1.8, marker="o", ms=3, label=survey.name)
    axes.set(yscale="log", yticks=power_ticks(float(powers.min()), float(powers.max())))
    axes.set(xlim=(0, frequency[-1] * 1.01), xlabel="cycles per patch", ylabel="power / white noise")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(length=0, which="both")
    axes.grid(axis="y", color="#dfe2e6", linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor="linecolor")
