"""Power spectra of several strategies in one chart, as inline SVG in the colours of the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from markupsafe import Markup, escape

from pantomim.report.charts import tick_texts, ticks

WIDE, NARROW = (880, 380), (430, 380)
LEFT, TOP, BOTTOM = 50, 12, 44
LINE = 16  # height of a name
LOWEST = 0.02  # power below is drawn at the edge
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Spectrum:
    """One line.

    Args:
        name: Written at its end.
        color: As CSS knows it.
        power: Of bins 1 ... K, over that of white noise.
    """

    name: str
    color: str
    power: np.ndarray


def spectrum_chart(spectra: Sequence[Spectrum], longer_side: int, size: tuple[int, int]) -> Markup:
    """Power against frequency, logarithmic in power, with white noise as the line at 1.

    Args:
        spectra: All with the same bins.
        longer_side: Of the grid, in patches; bin k lies at k / longer_side cycles a patch.
        size: Width and height.
    """
    width, height = size
    right, bottom = width - 24 - 7 * max(len(spectrum.name) for spectrum in spectra), height - BOTTOM
    frequency = np.arange(1, len(spectra[0].power) + 1) / longer_side
    powers = np.stack([spectrum.power for spectrum in spectra]).clip(min=LOWEST)
    y_ticks = power_ticks(float(powers.min()), float(powers.max()))
    low, high = math.log(min(y_ticks[0], powers.min())), math.log(max(y_ticks[-1], powers.max()))
    x_ticks = [tick for tick in ticks(0.0, float(frequency[-1]), 7 if width > 600 else 4) if tick <= frequency[-1]]

    def x(value: float) -> float:
        return LEFT + value / float(frequency[-1]) * (right - LEFT)

    def y(value: float) -> float:
        return bottom - (math.log(value) - low) / (high - low) * (bottom - TOP)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(_words(spectra))}">']
    for tick in y_ticks:
        kind = "white" if tick == 1 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick, text in zip(x_ticks, tick_texts(x_ticks), strict=True):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" x="{right}" y="{height - 6}" text-anchor="end">cycles per patch</text>')
    parts.append(
        f'<text class="label" transform="translate(11 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "power / white noise</text>"
    )
    for spectrum, power in zip(spectra, powers, strict=True):
        points = [(x(at), y(value)) for at, value in zip(frequency, power.tolist(), strict=True)]
        path = "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
        dots = "".join(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5"/>' for across, down in points)
        parts.append(f'<g style="--c: {spectrum.color}"><path class="spectrum" d="{path}"/>{dots}</g>')
    ends = spread([y(float(power[-1])) for power in powers], LINE, TOP, bottom)
    for spectrum, power, end in zip(spectra, powers, ends, strict=True):
        parts.append(
            f'<g style="--c: {spectrum.color}">'
            f'<path class="lead" d="M{right + 4} {y(float(power[-1])):.1f}L{right + 14} {end:.1f}"/>'
            f'<text class="name" x="{right + 18}" y="{end + 4:.1f}">{escape(spectrum.name)}</text></g>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))  # every text in it is escaped above


def power_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, at most one beyond the range on either side; 1 is among them, and not alone."""
    low, high = (0.5, 2.0) if low == high == 1.0 else (low, high)
    powers = range(math.floor(math.log10(min(low, 1.0))), math.ceil(math.log10(max(high, 1.0))) + 1)
    values = [float(f"{step}e{power}") for power in powers for step in STEPS]
    first = max((value for value in values if value <= min(low, 1.0)), default=values[0])
    last = min((value for value in values if value >= max(high, 1.0)), default=values[-1])
    return [value for value in values if first <= value <= last]


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """The places moved as little as needed to be `apart` from each other, in the same order, from `low` downwards.

    Those that are too near make a group around their middle. They run over `high` only if there are too many.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[float]] = []  # of places less the room of those before; none but equal ones touch
    for count, index in enumerate(order):
        groups.append([places[index] - count * apart])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    most = max(high - apart * (len(places) - 1), low)
    starts = [min(max(fmean(group), low), most) for group in groups for _ in group]
    moved = list(places)
    for count, (index, start) in enumerate(zip(order, starts, strict=True)):
        moved[index] = start + count * apart
    return moved


def _words(spectra: Sequence[Spectrum]) -> str:
    """The chart in sentences, for those who cannot see it."""
    return " ".join(
        f"{spectrum.name}: highest, {spectrum.power.max():.2g}, in bin {int(spectrum.power.argmax()) + 1} "
        f"of {len(spectrum.power)}; lowest {spectrum.power.min():.2g}."
        for spectrum in spectra
    )
