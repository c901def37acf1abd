"""The gallery of masks as one picture, for slides and for those who open no page."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from pantomim.analysis.mask_survey import MaskSurvey, Photo
from pantomim.masking import strategy_of
from pantomim.report.spectra import LOWEST, power_ticks, spread

INK, SOFT, GROUND, VEIL = "#1c2025", "#5b636d", "#e3e6ea", "#cfd4da"
COLUMN, GAP = 2.3, 0.2  # inches: a strategy's width, and the room between two
HEAD, NUMBERS, CHART = 1.5, 1.25, 3.2  # inches: title and names, a strategy's numbers, the spectra
BELOW = {"mask": 0.12, "photo": 0.12, "pattern": 0.36, "heat": 0.3}  # inches below a picture, for its caption
DPI = 130


def draw_poster(
    surveys: Sequence[MaskSurvey], samples: int, overlays: Sequence[tuple[Photo, int]], brightest: float
) -> bytes:
    """One column a strategy, the spectra below all of them; as a PNG.

    Args:
        surveys: One for each strategy.
        samples: Masks there are to show; at most two are.
        overlays: Which photo lies under which mask; at most two are shown.
        brightest: Mean visibility from which colour is full.
    """
    rows, columns = surveys[0].grid
    side = COLUMN - GAP
    tall = side * rows / columns if rows <= 2 * columns else 2 * side
    kinds = [("mask", index) for index in range(min(samples, 2))]
    kinds += [("photo", index) for index in range(min(len(overlays), 2))]
    kinds += [("pattern", 0)] * any(survey.pattern for survey in surveys) + [("heat", 0)]
    wide = COLUMN * max(len(surveys), 4) + 0.8
    high = HEAD + sum(tall + BELOW[kind] for kind, _ in kinds) + NUMBERS + CHART
    figure = Figure(figsize=(wide, high), dpi=DPI, facecolor="white")
    left = (wide - COLUMN * len(surveys) + GAP) / 2

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / wide, y / high, words, **style)

    text(left, high - 0.55, "What each mask hides", color=INK, size=20, weight="bold")
    about = f"{usual_counts(surveys)} of {rows * columns:,} patches on a grid of {rows} × {columns}"
    text(left, high - 0.85, f"{about}; coloured ones stay visible", color=SOFT, size=10.5)
    text(left, high - 1.07, f"Mean visibility: full colour from {100 * brightest:.0f} % on", color=SOFT, size=8.5)
    for index, survey in enumerate(surveys):
        color, x, y = strategy_of(survey.name).colour, left + COLUMN * index, high - HEAD
        text(x, y + 0.1, survey.name, color=color, size=15, weight="bold")
        for kind, which in kinds:
            y -= tall
            axes = figure.add_axes((x / wide, y / high, side / wide, tall / high))
            if kind == "mask":
                _cells(axes, survey.visible[which], ListedColormap([GROUND, color]), 1.0, lines=True)
            elif kind == "photo":
                _photo(axes, overlays[which][0], survey.visible[overlays[which][1]])
            elif kind == "pattern":
                _pattern(axes, survey, color)
                if survey.pattern:
                    text(x, y - 0.19, "pattern and window", color=SOFT, size=8.5)
            else:
                shades = LinearSegmentedColormap.from_list("visibility", [GROUND, color])
                _cells(axes, survey.visibility, shades, brightest)
                lowest, highest = 100 * survey.visibility.min(), 100 * survey.visibility.max()
                text(x, y - 0.19, f"mean visibility {lowest:.1f} to {highest:.1f} %", color=SOFT, size=8.5)
            y -= BELOW[kind]
        text(x, y, _numbers(survey), color=INK, size=9, va="top", linespacing=1.5)
    name = 0.1 * max(len(survey.name) for survey in surveys) + 0.5
    chart = wide - 0.75 - name
    _spectra(figure.add_axes((0.75 / wide, 0.6 / high, chart / wide, (CHART - 0.75) / high)), chart, surveys)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def usual_counts(surveys: Sequence[MaskSurvey]) -> str:
    """How many patches a mask of these strategies hides, as text; the median where the count varies."""
    counts = sorted({round(float(np.median(survey.num_masked))) for survey in surveys})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _cells(axes: Axes, values: np.ndarray, colors: Colormap, highest: float, lines: bool = False) -> None:
    axes.imshow(values, cmap=colors, vmin=0, vmax=highest, interpolation="nearest")
    rows, columns = values.shape
    if lines and max(rows, columns) <= 40:
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color=GROUND, linewidth=0.8)
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color=GROUND, linewidth=0.8)
    _bare(axes)


def _photo(axes: Axes, photo: Photo, visible: np.ndarray) -> None:
    scale = photo.pixels.shape[0] // visible.shape[0]
    hidden = np.kron(~visible, np.ones((scale, scale), dtype=bool))
    pixels = np.broadcast_to(photo.pixels, (*photo.pixels.shape[:2], 3)) / 255.0
    axes.imshow(np.where(hidden[:, :, None], np.array(to_rgb(VEIL)), pixels))
    _bare(axes)


def _pattern(axes: Axes, survey: MaskSurvey, color: str) -> None:
    pattern = survey.pattern
    if pattern is None:
        axes.text(0.5, 0.5, "–", color=SOFT, size=18, ha="center", va="center")
        axes.text(
            0.5, 0.4, textwrap.fill(strategy_of(survey.name).drawn, 28), color=SOFT, size=8, ha="center", va="top"
        )
        axes.axis("off")
        return
    axes.imshow(pattern.values, cmap="gray", interpolation="nearest")
    rows, columns = survey.grid
    corner = (pattern.left - 0.5, pattern.top - 0.5)
    axes.add_patch(Rectangle(corner, columns, rows, fill=False, edgecolor="white", linewidth=3.5))
    axes.add_patch(Rectangle(corner, columns, rows, fill=False, edgecolor=color, linewidth=2))
    _bare(axes)


def _numbers(survey: MaskSurvey) -> str:
    found, hidden = survey.statistics, survey.num_masked
    return "\n".join(
        [
            f"{hidden.mean():.{int(np.ptp(hidden) > 0)}f} of {survey.visible[0].size} hidden",
            f"{found.num_clusters.mean():.1f} clusters, largest {found.largest_cluster.mean():.1f}",
            f"{found.neighbours.mean():.2f} visible neighbours",
            f"distance {found.mean_distance.mean():.2f}, largest {found.max_distance.mean():.1f}",
        ]
    )


def _spectra(axes: Axes, wide: float, surveys: Sequence[MaskSurvey]) -> None:
    """The chart, so many inches wide."""
    longer = max(surveys[0].grid)
    powers = [survey.spectrum.clip(min=LOWEST) for survey in surveys]
    frequency = np.arange(1, len(powers[0]) + 1) / longer
    axes.axhline(1.0, color=SOFT, linewidth=0.8, linestyle=(0, (5, 4)))
    for survey, power in zip(surveys, powers, strict=True):
        axes.plot(frequency, power, color=strategy_of(survey.name).colour, linewidth=1.8, marker="o", markersize=3)
    axes.set_yscale("log")
    tick_values = power_ticks(float(min(map(np.min, powers))), float(max(map(np.max, powers))))
    low, high = np.log(min(tick_values[0], *map(np.min, powers))), np.log(max(tick_values[-1], *map(np.max, powers)))
    axes.set_ylim(np.exp(low) * 0.95, np.exp(high) * 1.05)
    axes.set_yticks(tick_values)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, frequency[-1] * 1.01)
    axes.set_xlabel("cycles per patch", color=SOFT, size=9)
    axes.set_ylabel("power / white noise", color=SOFT, size=9)
    axes.tick_params(colors=SOFT, labelsize=8.5, length=0, which="both")
    axes.grid(axis="y", color="#dfe2e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _name_ends(axes, wide, surveys, [float(power[-1]) for power in powers])


def _name_ends(axes: Axes, wide: float, surveys: Sequence[MaskSurvey], ends: Sequence[float]) -> None:
    """The names beside the ends of the lines, apart from each other, each with a lead to its own line."""
    bottom, top = np.log(axes.get_ylim())
    places = [float((np.log(end) - bottom) / (top - bottom)) for end in ends]
    inch = 1 / wide  # in shares of the chart's width
    for survey, place, apart in zip(surveys, places, spread(places, 0.075, 0.0, 1.0), strict=True):
        color = strategy_of(survey.name).colour
        across, down = [1 + 0.03 * inch, 1 + 0.2 * inch], [place, apart]
        axes.add_artist(Line2D(across, down, color=color, linewidth=0.9, transform=axes.transAxes, clip_on=False))
        text = axes.text(1 + 0.26 * inch, apart, survey.name, color=color, size=9.5, transform=axes.transAxes)
        text.set(weight="bold", verticalalignment="center")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_anchor("NW")
    for spine in axes.spines.values():
        spine.set_visible(False)
