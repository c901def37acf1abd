"""The charts of all pages: quantities over steps, layers and frequencies, scores as dots, and maps of CKA."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex

from pantomim.report.svg import BOTTOM, LEFT, LINE, RIGHT, TOP, Axis, Plot, ticks

MAX_POINTS = 400
LARGE, SMALL, NARROW = (880, 290), (430, 220), (430, 240)
LAYERS = (430, 260)
DASHES = ("none", "6 3", "2 3", "9 3 2 3", "1 2", "12 4")  # tell lines of one colour apart
MAX_CELL = 44  # side of a cell of a map
NUM_COLOURS = 6  # --c0, --c1 ... of the style sheet; lines beyond have another dash
ROW, LETTER = 24, 7.4  # height of a row of dots, width of a letter beside it
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LOWEST = 0.02  # power below is drawn at the edge
VIRIDIS = matplotlib.colormaps["viridis"]  # even in lightness and readable without colour


@dataclass(frozen=True)
class Chart:
    """A chart and its title; `narrow` is drawn for telephones, where the page has another one for them."""

    title: str
    wide: Markup
    narrow: Markup | None = None


@dataclass(frozen=True)
class Curve:
    """One measured quantity over ascending steps, with gaps where it is not finite."""

    title: str
    y_label: str  # quantity and unit
    steps: np.ndarray
    values: np.ndarray
    from_zero: bool = False  # the axis starts there
    smooth: bool = False  # draw a running mean over the thin line of the values
    cut_start: bool = False  # let the first steps run out of the chart if they would flatten all the rest
    x_label: str = "step"
    beside: "Curve | None" = None  # drawn with it, on the same axes and named by its title; measured now and then

    def __str__(self) -> str:
        finite = np.flatnonzero(np.isfinite(self.values))
        first, last = finite[0], finite[-1]
        more = "" if self.beside is None else f" {self.beside}"
        return (
            f"{self.title}: {self.values[first]:.3g} at {self.x_label} {self.steps[first]:,}, "
            f"{self.values[last]:.3g} at {self.x_label} {self.steps[last]:,}; lowest {self.values[finite].min():.3g}, "
            f"highest {self.values[finite].max():.3g}.{more}"
        )


def curve_chart(title: str, curve: Curve, *, large: bool = False) -> Chart:
    """The curve for wide and for narrow pages."""
    return Chart(title, line_chart(curve, LARGE if large else SMALL), line_chart(curve, NARROW))


def line_chart(curve: Curve, size: tuple[int, int]) -> Markup:
    """One curve; at least one of its values must be finite."""
    finite = np.isfinite(curve.values)
    if not finite.any():
        raise ValueError(f"Curve.values must have a finite value; got none for {curve.title}. Leave the chart out.")
    given = [curve.values] if curve.beside is None else [curve.values, curve.beside.values]
    steps, highest = (float(curve.steps[0]), float(curve.steps[-1])), float(np.nanmax(curve.values[finite]))
    top = _settled_top(np.where(finite, curve.values, np.nan)) if curve.cut_start else highest
    plot, unit = _frame(size, str(curve), curve, given, steps, top)
    values = np.where(finite, curve.values, np.nan) / unit
    lines = [("raw", values), ("line", running_mean(values))] if curve.smooth else [("line", values)]
    with plot.clipped():
        for kind, drawn in lines:
            plot.line(kind, *thin(curve.steps, drawn))
        if curve.beside is not None:
            other, at = curve.beside.values / unit, steps[0] + 0.72 * (steps[1] - steps[0])
            plot.line("beside", curve.beside.steps, other)
            for step, value in zip(curve.beside.steps, other, strict=True):
                plot.dot("beside", float(step), float(value), 3)
            plot.dot("beside", at, plot.y_axis.high - 0.05 * (plot.y_axis.high - plot.y_axis.low), 3)
            plot.text("tick", plot.x(at) + 8, plot.top + 14, curve.beside.title)
    drawn = lines[-1][1]
    if top < highest:
        inside = float(curve.steps[np.flatnonzero(drawn <= plot.y_axis.high)[0]])  # where the line comes into the box
        plot.text("tick", plot.x(inside) + 8, plot.top + 12, f"↑ up to {highest / unit:.3g} at the start")
    end = np.flatnonzero(finite)[-1]
    plot.dot("end", float(curve.steps[end]), float(drawn[end]), 3)
    return plot.svg()


def runs_chart(curves: Sequence[tuple[int, Curve]], words: str) -> Markup:
    """The curves of several runs, each with the number of its arm, which has a colour and stands at the line's end."""
    shown = [(arm, curve, curve.values[np.isfinite(curve.values)]) for arm, curve in curves]
    first, tops = shown[0][1], [_settled_top(values) if curve.cut_start else values.max() for _, curve, values in shown]
    steps = (min(float(each.steps[0]) for _, each in curves), max(float(each.steps[-1]) for _, each in curves))
    plot, unit = _frame(SMALL, words, first, [values for *_, values in shown], steps, float(max(tops)), 26)
    ends: dict[int, tuple[float, float]] = {}
    with plot.clipped():
        for arm, curve, _ in shown:
            values = running_mean(curve.values / unit) if curve.smooth else curve.values / unit
            there = np.isfinite(values)
            plot.line("arm", *thin(curve.steps[there], values[there], MAX_POINTS // 3), arm_style(arm))
            ends.setdefault(arm, (float(curve.steps[there][-1]), float(values[there][-1])))
    last = {arm: value for arm, (step, value) in ends.items() if plot.x(step) > plot.right - LINE}
    places = dict(zip(last, plot.ends(list(last.values())), strict=True)) if last else {}
    for arm, (step, value) in ends.items():
        plot.text("arm", plot.x(step) + 6, places.get(arm, plot.y(value)) + 4, str(arm + 1), style=arm_colour(arm))
    return plot.svg()


@dataclass(frozen=True)
class Dots:
    """A row of a chart of scores: a dot for each run, their mean, and its interval where there is one."""

    name: str
    arm: int | None  # its number; None for a baseline
    values: Sequence[float]
    half: float | None = None  # of the interval's width

    @property
    def mean(self) -> float:
        """Of the dots."""
        return sum(self.values) / len(self.values)

    def __str__(self) -> str:
        return f"{self.name}: {self.mean:.4g}" + ("" if self.half is None else f" ± {self.half:.2g}")


def dots_chart(rows: Sequence[Dots], x_label: str, title: str, *, numbered: bool = False) -> Markup:
    """A row of dots for each arm, which may be `numbered` as in `runs_chart`, or baseline, on one axis."""
    ends = [end for row in rows for end in (*row.values, row.mean - (row.half or 0.0), row.mean + (row.half or 0.0))]
    numbers = [f"{row.arm + 1} " if numbered and row.arm is not None else "" for row in rows]
    names = [number + _short(row.name, 24) for number, row in zip(numbers, rows, strict=True)]
    x_ticks = ticks(min(ends), max(ends), 4)
    left = min(16 + LETTER * max(map(len, names)), 200.0)
    y = Axis(len(rows) - 0.5, -0.5, (), "")
    x = Axis(x_ticks[0], x_ticks[-1], x_ticks, x_label)
    size = (SMALL[0], TOP + BOTTOM + ROW * len(rows))
    plot = Plot(size, f"{title}: {'; '.join(map(str, rows))}.", x, y, left=left, right=22)
    for tick in x_ticks:
        plot.vertical("grid", tick)
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        style = "--c: var(--soft)" if row.arm is None else arm_colour(row.arm)
        plot.text("name", plot.left - 10, plot.y(place) + 4, name, "end")
        if row.half is not None:
            plot.line("interval", (row.mean - row.half, row.mean + row.half), (place, place), style)
        for value in row.values:
            plot.dot("seed", value, place, 3.2, style)
        plot.dot("mean", row.mean, place, 4.6, style)
    return plot.svg()


def arm_colour(arm: int) -> str:
    """As a style."""
    return f"--c: var(--c{arm % NUM_COLOURS})"


def arm_style(arm: int) -> str:
    """Colour and dash of an arm's line."""
    return f"{arm_colour(arm)}; stroke-dasharray: {DASHES[arm // NUM_COLOURS % len(DASHES)]}"


def _frame(
    size: tuple[int, int],
    words: str,
    curve: Curve,
    given: Sequence[np.ndarray],
    steps: tuple[float, float],
    top: float,
    right: float = RIGHT,
) -> tuple[Plot, float]:
    """Axes as a curve has them that hold all that is given up to `top`, and the power of ten that is taken out."""
    values = np.concatenate(given)
    values = values[np.isfinite(values)]
    largest = float(np.abs(values).max())
    # Ten to this power is taken out of the axis's numbers, but for everyday sizes.
    exponent = 0 if largest == 0.0 or 0.01 <= largest < 1e6 else math.floor(math.log10(largest))
    unit = 10.0**exponent
    low, top = float(values.min()) / unit, top / unit
    y_ticks = ticks(0.0 if curve.from_zero else low, top, 4)
    first, last = steps
    x_ticks = [tick for tick in ticks(first, last, 6 if size[0] > 600 else 4) if first <= tick <= last]
    if curve.x_label in ("step", "stage"):
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]
    x_axis = Axis(first, last if last > first else first + 1, x_ticks, curve.x_label)
    y_label = curve.y_label + (f" (×10{str(exponent).translate(SUPERSCRIPTS)})" if exponent else "")
    y_axis = Axis(min(y_ticks[0], low), max(y_ticks[-1], top), y_ticks, y_label)
    return Plot(size, words, x_axis, y_axis, right=right), unit


def head_chart(distance: np.ndarray, uniform: float, highest: float, title: str) -> Markup:
    """A dot for each head of `distance` (layers, heads), a line through their means, and a line at `uniform`."""
    means = distance.mean(axis=1)
    words = f"{title}: mean over heads {means[0]:.3g} pixels in the first block, {means[-1]:.3g} in the last."
    plot = _over_layers(len(distance), highest, "distance (pixels)", words, RIGHT)
    plot.horizontal("even", uniform)
    for layer, head in np.ndindex(distance.shape):
        plot.dot("dot", layer + 1, float(distance[layer, head]), 3.2)
    plot.line("line", range(1, len(means) + 1), means)
    return plot.svg()


def share_chart(shares: np.ndarray, highest: float, title: str) -> Markup:
    """A line for each number k of singular values of `shares` (layers, k), named at its end."""
    words = (
        f"{title}: the largest singular value has {shares[0, 0]:.3g} of the sum in the first block, "
        f"{shares[-1, 0]:.3g} in the last."
    )
    plot = _over_layers(len(shares), highest, "share of the sum", words, 44)
    lines = {f"k = {number}": values for number, values in enumerate(shares.T, 1)}
    return _named_lines(plot, lines, [f"opacity: {1 - 0.16 * number:.2f}" for number in range(len(lines))])


def arms_chart(lines: Mapping[str, np.ndarray], highest: float, y_label: str, title: str) -> Markup:
    """A line for each of several encoders, named at its end; those of other depths are drawn over the same width."""
    told = "; ".join(
        f"{name} {values[0]:.3g} in the first block, {values[-1]:.3g} in the last" for name, values in lines.items()
    )
    plot = _over_layers(max(map(len, lines.values())), highest, y_label, f"{title}: {told}.", 110)
    dashes = (f"stroke-dasharray: {DASHES[number % len(DASHES)]}" for number in range(len(lines)))
    return _named_lines(plot, lines, list(dashes))


def learning_chart(title: str, labels: Sequence[int], lines: Mapping[str, Sequence[float]]) -> Chart:
    """A line for each contender over the labels a class, from few to many."""
    y_ticks = ticks(0.0, max(map(max, lines.values())), 4)
    words = "; ".join(f"{name} {', '.join(f'{value:.1f}' for value in values)}" for name, values in lines.items())
    x_axis = Axis(labels[0], labels[-1], labels, "labels a class", log=True)
    plot = Plot(
        LAYERS, f"{title}: {words}.", x_axis, Axis(0.0, y_ticks[-1], y_ticks, "errors in 100"), right=110, inset=12
    )
    ends = plot.ends([values[-1] for values in lines.values()])
    for number, ((name, values), end) in enumerate(zip(lines.items(), ends, strict=True)):
        plot.line("line", labels, values, f"stroke-dasharray: {DASHES[number % len(DASHES)]}")
        plot.text("tick", plot.right + 8, end + 4, _short(name))
    return Chart(title, plot.svg())


def map_chart(values: np.ndarray, rows: str, columns: str) -> Markup:
    """CKA (0, or a little below by chance, to 1; NaN: none) of the layers of `rows`, downwards, with `columns`'."""
    num_rows, num_columns = values.shape
    side = min((LAYERS[0] - LEFT - RIGHT) / max(num_rows, num_columns), MAX_CELL)
    best = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    words = f"CKA of {rows} (rows) with {columns}; most alike: " + ", ".join(
        f"block {row + 1} and {column + 1} ({values[row, column]:.2f})" for row, column in enumerate(best)
    )
    plot = Plot(
        (LAYERS[0], TOP + side * num_rows + BOTTOM),
        words,
        Axis(0.5, num_columns + 0.5, _layer_ticks(num_columns), f"{_short(columns)}, block"),
        Axis(num_rows + 0.5, 0.5, _layer_ticks(num_rows), f"{_short(rows)}, block"),
        right=LAYERS[0] - LEFT - side * num_columns,
    )
    for (row, column), value in np.ndenumerate(values):
        left, top = plot.x(column + 0.5), plot.y(row + 0.5)
        fill = to_hex(VIRIDIS(value)) if np.isfinite(value) else "#8886"
        plot.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{side + 0.3:.1f}" height="{side + 0.3:.1f}" '
            f'fill="{fill}"><title>{row + 1}, {column + 1}: {value:.3f}</title></rect>'
        )
        if side >= 28:
            text, ink = f"{value:.2f}".replace("0.", "."), "#000" if value > 0.6 else "#fff"
            plot.text("cell", plot.x(column + 1), plot.y(row + 1) + 4, text, "middle", f"fill: {ink}")
    return plot.svg()


def spectrum_chart(spectra: Sequence[tuple[str, str, np.ndarray]], longer_side: int, size: tuple[int, int]) -> Markup:
    """Power over white noise's, logarithmic, of each (name, colour, power); bin k is at k / longer_side cycles."""
    words = " ".join(
        f"{name}: highest, {power.max():.2g}, in bin {int(power.argmax()) + 1} of {len(power)}; "
        f"lowest {power.min():.2g}."
        for name, _, power in spectra
    )
    frequency = np.arange(1, len(spectra[0][2]) + 1) / longer_side
    powers = np.stack([power for _, _, power in spectra]).clip(min=LOWEST)
    low, high, last = float(powers.min()), float(powers.max()), float(frequency[-1])
    x_ticks = [tick for tick in ticks(0.0, last, 7 if size[0] > 600 else 4) if tick <= last]
    y_ticks = power_ticks(low, high)
    x_axis = Axis(0.0, last, x_ticks, "cycles per patch")
    y_axis = Axis(min(y_ticks[0], low), max(y_ticks[-1], high), y_ticks, "power / white noise", log=True)
    plot = Plot(size, words, x_axis, y_axis, right=24 + 7 * max(len(name) for name, _, _ in spectra))
    plot.horizontal("white", 1.0)
    for (name, color, _), power, end in zip(spectra, powers, plot.ends(powers[:, -1]), strict=True):
        plot.parts.append(f'<g style="--c: {color}">')
        plot.line("spectrum", frequency, power)
        for at, value in zip(frequency, power, strict=True):
            plot.dot("bin", float(at), float(value), 2.5)
        lead = f"M{plot.right + 4} {plot.y(power[-1]):.1f}L{plot.right + 14} {end:.1f}"
        plot.parts.append(f'<path class="lead" d="{lead}"/>')
        plot.text("name", plot.right + 18, end + 4, name)
        plot.parts.append("</g>")
    return plot.svg()


def power_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, at most one beyond the range on either side; 1 is among them, and not alone."""
    low, high = (0.5, 2.0) if low == high == 1.0 else (low, high)
    powers = range(math.floor(math.log10(min(low, 1.0))), math.ceil(math.log10(max(high, 1.0))) + 1)
    values = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    first = max((value for value in values if value <= min(low, 1.0)), default=values[0])
    last = min((value for value in values if value >= max(high, 1.0)), default=values[-1])
    return [value for value in values if first <= value <= last]


def running_mean(values: np.ndarray) -> np.ndarray:
    """A centred mean over about a thirtieth of the values (narrower at the ends); gaps stay gaps."""
    half = max(len(values) // 60, 1)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), half)  # symmetric: no lag at the ends
    first, last = index - reach, index + reach + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return np.where(finite, mean, np.nan)


def thin(steps: np.ndarray, values: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points: of each run of points the lowest and the highest, in order."""
    if len(steps) <= most:
        return steps, values
    keep = {0, len(steps) - 1}
    for chunk in np.array_split(np.arange(len(steps)), most // 2):
        inside = values[chunk]
        if np.isfinite(inside).any():
            keep |= {int(chunk[np.nanargmin(inside)]), int(chunk[np.nanargmax(inside)])}
        keep |= {int(index) for index in chunk[~np.isfinite(inside)][:1]}
    kept = np.array(sorted(keep))
    return steps[kept], values[kept]


def _settled_top(values: np.ndarray) -> float:
    """The highest value, without the first twentieth where that rises to more than twice the range of the rest."""
    rest = values[max(len(values) // 20, 1) :]
    rest = rest[np.isfinite(rest)]
    highest = float(np.nanmax(values))
    low, top = (float(rest.min()), float(rest.max())) if rest.size else (highest, highest)
    return top + 0.5 * (top - low) if highest - low > 2 * (top - low) > 0 else highest


def _over_layers(depth: int, highest: float, y_label: str, words: str, right: float) -> Plot:
    """A frame that is the same for all encoders that are compared: from zero to their `highest` value."""
    y_ticks = ticks(0.0, highest, 4)
    x = Axis(1, max(depth, 2), _layer_ticks(depth), "block")
    return Plot(LAYERS, words, x, Axis(y_ticks[0], y_ticks[-1], y_ticks, y_label), right=right, inset=12)


def _named_lines(plot: Plot, lines: Mapping[str, np.ndarray], styles: Sequence[str]) -> Markup:
    ends = plot.ends([float(values[-1]) for values in lines.values()])
    depth = max(map(len, lines.values()))
    for (name, values), style, end in zip(lines.items(), styles, ends, strict=True):
        plot.line("line", np.linspace(1, depth, len(values)), values, style)
        plot.text("tick", plot.right + 8, end + 4, _short(name))
    return plot.svg()


def _layer_ticks(count: int) -> list[int]:
    """Blocks that are numbered, from 1: all, or every so many of them."""
    return list(range(1, count + 1, max(1, -(-count // 13))))


def _short(name: str, most: int = 16) -> str:
    """A name beside an axis, its end left out where it is long."""
    return name if len(name) <= most else name[: most - 1] + "…"
