"""Charts over the layers of an encoder, as inline SVG in the colours of the page's style sheet: dots, lines, a map."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from pantomim.report.charts import tick_texts, ticks
from pantomim.report.spectra import spread

WIDTH, HEIGHT = 430, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 40
NAME = 44  # room for the names of lines
NAMES = 110  # the same for names of encoders
DASHES = ("none", "6 3", "2 3", "9 3 2 3", "1 2", "12 4")  # tell lines of one colour apart
LINE = 15  # height of a name
MAX_CELL = 44  # side of a cell of the map
# Of the map, from 0 to 1, even in lightness and readable without colour: dark violet to yellow.
COLORS = np.array([[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]])


def head_chart(distance: np.ndarray, uniform: float, highest: float, title: str) -> Markup:
    """A dot for each head, a line through their means, and what attention to everything alike would give.

    Args:
        distance: In pixels, (layers, heads).
        uniform: Of attention that is alike to all tokens.
        highest: Upper end of the axis; the same for all encoders that are compared.
        title: For those who cannot see it.
    """
    means = distance.mean(axis=1)
    words = f"{title}: mean over heads {means[0]:.3g} pixels in the first layer, {means[-1]:.3g} in the last."
    x, y, parts = _frame(len(distance), (0.0, highest), "distance (pixels)", words, WIDTH - RIGHT)
    parts.append(f'<line class="even" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(uniform):.1f}" y2="{y(uniform):.1f}"/>')
    parts += [
        f'<circle class="dot" cx="{x(layer):.1f}" cy="{y(value):.1f}" r="3.2"/>'
        for layer, heads in enumerate(distance)
        for value in heads
    ]
    parts.append(_line([(x(layer), y(value)) for layer, value in enumerate(means)]))
    return Markup("".join([*parts, "</svg>"]))  # every text in it is escaped


def share_chart(shares: np.ndarray, highest: float, title: str) -> Markup:
    """A line for each number k of singular values, named at its end.

    Args:
        shares: (layers, k).
        highest: Upper end of the axis; the same for all encoders that are compared.
        title: For those who cannot see it.
    """
    words = (
        f"{title}: the largest singular value has {shares[0, 0]:.3g} of the sum in the first layer, "
        f"{shares[-1, 0]:.3g} in the last."
    )
    right = WIDTH - NAME
    x, y, parts = _frame(len(shares), (0.0, highest), "share of the sum", words, right)
    for number, values in enumerate(shares.T):
        points = [(x(layer), y(value)) for layer, value in enumerate(values)]
        parts.append(f'<g style="opacity: {1 - 0.16 * number:.2f}">{_line(points)}</g>')
    ends = spread([y(value) for value in shares[-1]], LINE, TOP, HEIGHT - BOTTOM)
    for number, end in enumerate(ends, 1):
        parts.append(f'<text class="tick" x="{right + 8}" y="{end + 4:.1f}">k = {number}</text>')
    return Markup("".join([*parts, "</svg>"]))


def arms_chart(lines: Mapping[str, np.ndarray], highest: float, y_label: str, title: str) -> Markup:
    """A line for each of several encoders, named at its end.

    Args:
        lines: By name, one value a layer; encoders of other depths are drawn over the same width.
        highest: Upper end of the axis; the same for all charts that are compared.
        y_label: Quantity and unit.
        title: For those who cannot see it.
    """
    told = "; ".join(
        f"{name} {values[0]:.3g} in the first layer, {values[-1]:.3g} in the last" for name, values in lines.items()
    )
    right, depth = WIDTH - NAMES, max(len(values) for values in lines.values())
    x, y, parts = _frame(depth, (0.0, highest), y_label, f"{title}: {told}.", right)
    ends = spread([y(values[-1]) for values in lines.values()], LINE, TOP, HEIGHT - BOTTOM)
    for number, ((name, values), end) in enumerate(zip(lines.items(), ends, strict=True)):
        stretch = (depth - 1) / max(len(values) - 1, 1)
        path = _line([(x(layer * stretch), y(value)) for layer, value in enumerate(values)])
        dashes = DASHES[number % len(DASHES)]
        parts.append(f'<g style="stroke-dasharray: {dashes}">{path}</g>')
        parts.append(f'<text class="tick" x="{right + 8}" y="{end + 4:.1f}">{_short(name)}</text>')
    return Markup("".join([*parts, "</svg>"]))  # every text in it is escaped


def map_chart(values: np.ndarray, rows: str, columns: str) -> Markup:
    """A map of how alike layers are: one encoder's layers downwards, another's to the right; layer 0 at the top left.

    Args:
        values: From 0 (or a little below, by chance) to 1; NaN where there is none.
        rows: Name of the encoder whose layers are the rows.
        columns: The same of the columns.
    """
    num_rows, num_columns = values.shape
    side = min((WIDTH - LEFT - RIGHT) / max(num_rows, num_columns), MAX_CELL)
    height = TOP + side * num_rows + BOTTOM
    best = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    words = f"CKA of {rows} (rows) with {columns}; most alike: " + ", ".join(
        f"layer {row} and {column} ({values[row, column]:.2f})" for row, column in enumerate(best)
    )
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(words)}">']
    for (row, column), value in np.ndenumerate(values):
        left, top = LEFT + side * column, TOP + side * row
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{side + 0.3:.1f}" height="{side + 0.3:.1f}" '
            f'fill="{_color(value)}"><title>{row}, {column}: {value:.3f}</title></rect>'
        )
        if side >= 28:
            ink = "#000" if value > 0.6 else "#fff"
            middle = f'x="{left + side / 2:.1f}" y="{top + side / 2 + 4:.1f}"'
            text = f"{value:.2f}".replace("0.", ".")
            parts.append(f'<text class="cell" {middle} style="fill: {ink}">{text}</text>')
    for layer in _layer_ticks(num_columns):
        middle, below = LEFT + side * (layer + 0.5), TOP + side * num_rows + 18
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{below:.1f}" text-anchor="middle">{layer}</text>')
    for layer in _layer_ticks(num_rows):
        middle = TOP + side * (layer + 0.5) + 4
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{layer}</text>')
    right = LEFT + side * num_columns
    parts.append(
        f'<text class="label" x="{right:.1f}" y="{height - 5:.1f}" text-anchor="end">{_short(columns)}, layer</text>'
    )
    parts.append(
        f'<text class="label" transform="translate(10 {TOP + side * num_rows / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{_short(rows)}, layer</text></svg>'
    )
    return Markup("".join(parts))


def _frame(
    num_layers: int, ends: tuple[float, float], y_label: str, words: str, right: float
) -> tuple[Callable[[float], float], Callable[[float], float], list[str]]:
    """Places of layers and values, and what lies behind the marks."""
    y_ticks = ticks(*ends, 4)
    low, high, bottom = y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM

    def x(layer: float) -> float:
        return LEFT + 12 + layer / max(num_layers - 1, 1) * (right - LEFT - 24)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">']
    for tick, text in zip(y_ticks, tick_texts(y_ticks), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for layer in _layer_ticks(num_layers):
        parts.append(f'<text class="tick" x="{x(layer):.1f}" y="{bottom + 18}" text-anchor="middle">{layer}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{right}" y="{HEIGHT - 5}" text-anchor="end">layer</text>')
    parts.append(
        f'<text class="label" transform="translate(10 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return x, y, parts


def _layer_ticks(count: int) -> list[int]:
    """Layers that are numbered: all, or every so many of them."""
    return list(range(0, count, max(1, -(-count // 13))))


def _short(name: str) -> Markup:
    """A name beside an axis, its end left out where it is long."""
    return escape(name if len(name) <= 16 else name[:15] + "…")


def _line(points: Sequence[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("h0" if len(points) == 1 else "")
    return f'<path class="line" d="{path}"/>'


def _color(value: float) -> str:
    """Of a cell; gray where there is no value."""
    if not np.isfinite(value):
        return "#8886"
    place = float(np.clip(value, 0.0, 1.0)) * (len(COLORS) - 1)
    first = min(int(place), len(COLORS) - 2)
    mixed = COLORS[first] + (place - first) * (COLORS[first + 1] - COLORS[first])
    return "#" + "".join(f"{round(part):02x}" for part in mixed)
