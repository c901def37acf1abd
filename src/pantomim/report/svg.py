"""A frame with two axes as inline SVG: text stays text, and colours are those of the page's style sheet, light or dark.

matplotlib's SVG of the same curve is three times as large, and its colours are fixed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from scipy.optimize import isotonic_regression

Values = Sequence[float] | np.ndarray
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42  # room around the plot: numbers and labels of the axes
DIGIT = 9  # pixels
LINE = 15  # height of a name beside the end of a line


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, numbered at `ticks`."""

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    log: bool = False

    @property
    def texts(self) -> list[str]:
        """The numbers at the ticks."""
        return [f"{tick:g}" for tick in self.ticks] if self.log else tick_texts(self.ticks)

    def share(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return ((math.log(value) if self.log else value) - low) / (high - low)


class Plot:
    """An SVG that fills its container's width; what is drawn is added to `parts`, every text in it escaped.

    `words` tell the chart to those who cannot see it. `right` is the room for names beside the plot, `inset` keeps
    marks off the sides; `left` is the room for the y axis, by default as much as its numbers need.
    """

    def __init__(
        self,
        size: tuple[float, float],
        words: str,
        x: Axis,
        y: Axis,
        *,
        left: float | None = None,
        right: float = RIGHT,
        inset: float = 0.0,
    ) -> None:
        width, height = size
        self.x_axis, self.y_axis, self.inset = x, y, inset
        beside = LEFT + DIGIT * max(0, max(map(len, y.texts), default=0) - 4)  # longer numbers
        self.left = beside if left is None else left
        self.right, self.top, self.bottom = width - right, TOP, height - BOTTOM
        self.parts = [
            f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(words)}">'
        ]
        for tick, text in zip(y.ticks, y.texts, strict=True):
            self.horizontal("grid", tick)
            self.text("tick", self.left - 8, self.y(tick) + 4, text, "end")
        for tick, text in zip(x.ticks, x.texts, strict=True):
            self.text("tick", self.x(tick), self.bottom + 18, text, "middle")
        self.horizontal("axis", y.low)
        self.text("label", self.right, height - 6, x.label, "end")
        middle = (self.top + self.bottom) / 2
        self.parts.append(
            f'<text class="label" transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(y.label)}</text>"
        )

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return self.left + self.inset + self.x_axis.share(value) * (self.right - self.left - 2 * self.inset)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return self.bottom - self.y_axis.share(value) * (self.bottom - self.top)

    def text(self, kind: str, x: float, y: float, words: str, anchor: str = "start", style: str = "") -> None:
        """A text of a class of the style sheet."""
        at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{_style(style)}'
        self.parts.append(f'<text class="{kind}" {at}>{escape(words)}</text>')

    def horizontal(self, kind: str, value: float) -> None:
        """A line through the whole plot."""
        y = f"{self.y(value):.1f}"
        self.parts.append(f'<line class="{kind}" x1="{self.left}" x2="{self.right}" y1="{y}" y2="{y}"/>')

    def vertical(self, kind: str, value: float) -> None:
        """The same from top to bottom."""
        x = f"{self.x(value):.1f}"
        self.parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{self.top}" y2="{self.bottom}"/>')

    @contextmanager
    def clipped(self) -> Iterator[None]:
        """What is drawn within is cut where it runs out of the box: by a nested svg."""
        width, height = self.right - self.left, self.bottom - self.top + 2
        self.parts.append(
            f'<svg x="{self.left}" y="{self.top}" width="{width}" height="{height}" '
            f'viewBox="{self.left} {self.top} {width} {height}">'
        )
        yield
        self.parts.append("</svg>")

    def line(self, kind: str, xs: Values, ys: Values, style: str = "") -> None:
        """A line through the points, with gaps where one is not finite; a lone point becomes a dot."""
        commands, drawing = [], False
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(y):
                commands.append(f"{'L' if drawing else 'M'}{self.x(x):.1f} {self.y(y):.1f}{'' if drawing else 'h0'}")
            drawing = math.isfinite(y)
        self.parts.append(f'<path class="{kind}" d="{"".join(commands)}"{_style(style)}/>')

    def dot(self, kind: str, x: float, y: float, radius: float, style: str = "") -> None:
        """A mark."""
        at = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}"{_style(style)}'
        self.parts.append(f'<circle class="{kind}" {at}/>')

    def ends(self, values: Values) -> list[float]:
        """Where names of lines that end at these values stand, below each other."""
        return spread([self.y(value) for value in values], LINE, self.top, self.bottom)

    def svg(self) -> Markup:
        """The whole."""
        return Markup("".join([*self.parts, "</svg>"]))


def _style(style: str) -> str:
    return f' style="{style}"' if style else ""


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values at even distances that cover a range, about `count` of them."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    distance = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [round(index * distance, 12) for index in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The values with as many decimals as tell them apart, thousands set off."""
    decimals = next(d for d in range(13) if all(abs(round(v, d) - v) < 1e-9 for v in values))
    return [f"{value:,.{decimals}f}" for value in values]


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """The places moved as little as needed to be `apart`, in the same order, from `low` on; over `high` if too many."""
    order, room = np.argsort(places, kind="stable"), apart * np.arange(len(places))
    # Less the room of those before, places may touch but not change their order: least squares are isotonic.
    starts = isotonic_regression(np.asarray(places, dtype=float)[order] - room).x
    moved = np.empty(len(places))
    moved[order] = starts.clip(low, max(high - room[-1], low)) + room
    return moved.tolist()
