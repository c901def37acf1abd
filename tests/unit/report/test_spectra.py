import re

import numpy as np
import pytest

from pantomim.masking import STRATEGIES, strategy_of
from pantomim.report.charts import power_ticks, spectrum_chart
from pantomim.report.mask_gallery import SIZES
from pantomim.report.svg import spread


@pytest.mark.parametrize(("low", "high"), [(0.05, 15.0), (0.9, 1.1), (1.0, 1.0), (0.02, 0.5), (3.0, 64.0), (0.5, 2.0)])
def test_ticks_cover_the_range_and_white_noise(low, high):
    found = power_ticks(low, high)
    assert found[0] <= min(low, 1.0)
    assert found[-1] >= max(high, 1.0)
    assert 1.0 in found
    assert len(found) >= 2
    assert all(min(low, 1.0) < tick < max(high, 1.0) for tick in found[1:-1] if low < high)


def test_names_are_moved_apart_in_order_and_no_more_than_needed():
    assert spread([10.0, 50.0], 16, 0, 100) == [10.0, 50.0]
    found = spread([50.0, 51.0, 98.0, 99.0], 16, 0, 100)
    assert np.diff(found).min() >= 16
    assert found[-1] == 100.0
    assert spread([50.0, 52.0], 16, 0, 100) == [43.0, 59.0]  # around their middle
    assert spread([30.0, 50.0, 50.0, 50.0], 16, 0, 100) == [21.0, 37.0, 53.0, 69.0]
    assert spread([5.0, 1.0], 16, 0, 100) == [16.0, 0.0]
    assert spread([1.0] * 10, 16, 0, 100)[-1] == 144.0  # no room: below the chart rather than one upon another


@pytest.mark.parametrize("size", SIZES)
def test_every_line_is_drawn_inside_the_chart_and_named(size):
    spectra = [("<red>", "#d00000", np.array([15.0, 1.0, 0.0])), ("flat", "#888888", np.ones(3))]
    text = spectrum_chart(spectra, 4, size)
    assert "&lt;red&gt;" in text
    assert "<red>" not in text
    lines = re.findall(r'class="spectrum" d="M([^"]*)"', text)
    assert len(lines) == 2
    for line in lines:
        points = np.array([[float(number) for number in point.split()] for point in line.replace("h0", "").split("L")])
        assert points.shape == (3, 2)
        assert (points >= 0).all()
        assert (points <= size).all()
        assert (np.diff(points[:, 0]) > 0).all()
    ones = re.search(r'class="white" [^>]*y1="([\d.]+)"', text)
    assert ones is not None
    assert lines[1].count(f" {ones[1]}") == 3  # the flat line lies on that of white noise


def luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_are_seen_on_light_and_dark_pages():
    for name in (*STRATEGIES, "file"):
        colour = luminance(strategy_of(name).colour)
        light, dark = luminance("#fdfdfc"), luminance("#14171b")
        assert (light + 0.05) / (colour + 0.05) >= 3, name
        assert (colour + 0.05) / (dark + 0.05) >= 3, name
    assert len({strategy.colour for strategy in STRATEGIES.values()}) == len(STRATEGIES)
