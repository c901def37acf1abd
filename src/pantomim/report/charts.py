"""Line charts as inline SVG: text stays text, and colours are those of the page's style sheet, light or dark."""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

MAX_POINTS = 400
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 50, 14, 14, 40
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Curve:
    """One measured quantity over the steps.

    Args:
        title: Names the chart.
        y_label: Quantity and unit, for the axis.
        steps: Ascending.
        values: One a step; gaps where not finite.
        from_zero: The axis starts at zero.
        smooth: Draw a running mean over the thin line of the values.
        cut_start: Let the first steps run out of the chart, which says so, if they would flatten all the rest.
        x_label: What a step is.
    """

    title: str
    y_label: str
    steps: np.ndarray
    values: np.ndarray
    from_zero: bool = False
    smooth: bool = False
    cut_start: bool = False
    x_label: str = "step"


def line_chart(curve: Curve, width: int, height: int) -> Markup:
    """The chart as an SVG element that fills its container's width.

    Raises:
        ValueError: if no value is finite.
    """
    finite = np.isfinite(curve.values)
    if not finite.any():
        raise ValueError(f"Curve.values must have a finite value; got none for {curve.title}. Leave the chart out.")
    exponent = _exponent(np.abs(curve.values[finite]).max())
    values = np.where(finite, curve.values, np.nan) / 10.0**exponent
    y_label = curve.y_label + (f" (×10{str(exponent).translate(SUPERSCRIPTS)})" if exponent else "")
    low, high = float(values[finite].min()), float(values[finite].max())
    top = _settled_top(values) if curve.cut_start else high
    cut, high = top < high, top
    y_ticks = ticks(0.0 if curve.from_zero else low, high, 4)
    x_ticks = ticks(float(curve.steps[0]), float(curve.steps[-1]), 6 if width > 600 else 4)
    x_ticks = [tick for tick in x_ticks if tick <= curve.steps[-1] and float(tick).is_integer()]
    x_low, x_high = float(curve.steps[0]), float(max(curve.steps[-1], curve.steps[0] + 1))
    y_low, y_high = min(y_ticks[0], low), max(y_ticks[-1], high)

    def x(step: float) -> float:
        return MARGIN_LEFT + (step - x_low) / (x_high - x_low) * (width - MARGIN_LEFT - MARGIN_RIGHT)

    def y(value: float) -> float:
        return height - MARGIN_BOTTOM - (value - y_low) / (y_high - y_low) * (height - MARGIN_TOP - MARGIN_BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(_description(curve))}">'
    ]
    right, bottom = width - MARGIN_RIGHT, height - MARGIN_BOTTOM
    for tick, text in zip(y_ticks, tick_texts(y_ticks), strict=True):
        parts.append(f'<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{MARGIN_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for tick, text in zip(x_ticks, tick_texts(x_ticks), strict=True):
        if tick >= x_low:
            parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{MARGIN_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{right}" y="{height - 5}" text-anchor="end">{escape(curve.x_label)}</text>')
    middle = (MARGIN_TOP + bottom) / 2
    parts.append(
        f'<text class="label" transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    lines = [("raw", values), ("line", running_mean(values))] if curve.smooth else [("line", values)]
    # A nested svg cuts what runs out of its box.
    plot_width, plot_height = right - MARGIN_LEFT, bottom - MARGIN_TOP + 2
    parts.append(
        f'<svg x="{MARGIN_LEFT}" y="{MARGIN_TOP}" width="{plot_width}" height="{plot_height}" '
        f'viewBox="{MARGIN_LEFT} {MARGIN_TOP} {plot_width} {plot_height}">'
    )
    for kind, drawn in lines:
        steps, thinned = thin(curve.steps, drawn)
        path = _path([(x(step), y(value)) for step, value in zip(steps, thinned, strict=True)])
        parts.append(f'<path class="{kind}" d="{path}"/>')
    parts.append("</svg>")
    if cut:
        drawn = lines[-1][1]
        inside = float(curve.steps[np.flatnonzero(drawn <= y_high)[0]])  # where the line comes into the box
        text = f"↑ up to {values[finite].max():.3g} at the start"
        parts.append(f'<text class="tick" x="{x(inside) + 8:.1f}" y="{MARGIN_TOP + 12}">{text}</text>')
    last = np.flatnonzero(finite)[-1]
    end = (x(float(curve.steps[last])), y(float(lines[-1][1][last])))
    parts.append(f'<circle class="end" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3"/></svg>')
    return Markup("".join(parts))  # every text in it is escaped above


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values at even distances that cover a range, about `count` of them."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    distance = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [round(index * distance, 12) for index in range(first, last + 1)]


def tick_texts(values: list[float]) -> list[str]:
    """The values with as many decimals as tell them apart, thousands set off."""
    decimals = next(d for d in range(13) if all(abs(round(v, d) - v) < 1e-9 for v in values))
    return [f"{value:,.{decimals}f}" for value in values]


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


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about `MAX_POINTS` points: of each run of points the lowest and the highest, in order."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    keep = {0, len(steps) - 1}
    for chunk in np.array_split(np.arange(len(steps)), MAX_POINTS // 2):
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
    if not rest.size:
        return highest
    low, top = float(rest.min()), float(rest.max())
    return top + 0.5 * (top - low) if highest - low > 2 * (top - low) > 0 else highest


def _exponent(largest: float) -> int:
    """Ten to this power is taken out of an axis's numbers; 0 for everyday sizes."""
    if largest == 0.0 or 0.01 <= largest < 1e6:
        return 0
    return math.floor(math.log10(largest))


def _path(points: list[tuple[float, float]]) -> str:
    """A line through the points, with gaps where one is not finite; a lone point becomes a dot."""
    commands, drawing = [], False
    for x, y in points:
        if not math.isfinite(y):
            drawing = False
            continue
        commands.append(f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}" + ("" if drawing else "h0"))
        drawing = True
    return "".join(commands)


def _description(curve: Curve) -> str:
    """The chart in a sentence, for those who cannot see it."""
    finite = np.flatnonzero(np.isfinite(curve.values))
    first, last = finite[0], finite[-1]
    return (
        f"{curve.title}: {curve.values[first]:.3g} at {curve.x_label} {curve.steps[first]:,}, "
        f"{curve.values[last]:.3g} at {curve.x_label} {curve.steps[last]:,}; lowest {curve.values[finite].min():.3g}, "
        f"highest {curve.values[finite].max():.3g}."
    )
