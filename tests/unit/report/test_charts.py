import re

import numpy as np
import pytest

from pantomim.report.charts import (
    MAX_POINTS,
    SMALL,
    Curve,
    Dots,
    dots_chart,
    line_chart,
    running_mean,
    runs_chart,
    thin,
)
from pantomim.report.svg import tick_texts, ticks


def curve(values, **options) -> Curve:
    return Curve("Loss", "loss", np.arange(1, len(values) + 1), np.asarray(values, dtype=float), **options)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.334, 0.3361), (0.0, 1234567.0), (-3.0, 5.0), (2.0, 2.0), (1e-9, 3e-9)])  # fmt: skip  # noqa: E501
def test_ticks_cover_the_range_at_even_distances(low, high):
    found = ticks(low, high, 4)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_tick_texts_tell_ticks_apart():
    assert tick_texts([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_texts([0.0, 10000.0]) == ["0", "10,000"]


def test_running_mean_does_not_lag_and_keeps_gaps():
    line = np.linspace(3.0, 1.0, 600)
    assert np.allclose(running_mean(line), line)
    line[100] = np.nan
    smooth = running_mean(line)
    assert np.isnan(smooth[100])
    assert np.isfinite(np.delete(smooth, 100)).all()


def test_thinning_keeps_ends_and_extremes():
    values = np.random.default_rng(0).random(50_000)
    values[12_345], values[777], values[20_000] = 9.0, -9.0, np.nan
    steps, kept = thin(np.arange(50_000), values)
    assert len(steps) <= 2 * MAX_POINTS
    assert (steps[0], steps[-1]) == (0, 49_999)
    assert np.nanmax(kept) == 9.0
    assert np.nanmin(kept) == -9.0
    assert np.isnan(kept).any()


def test_a_steep_start_is_cut_and_said():
    values = np.concatenate([[9.0, 5.0], np.linspace(1.0, 0.5, 98)])
    assert "up to 9 at the start" in line_chart(curve(values, cut_start=True), (430, 220))
    assert "at the start" not in line_chart(curve(values), (430, 220))
    assert "at the start" not in line_chart(curve(np.linspace(1.0, 0.5, 100), cut_start=True), (430, 220))


def test_small_numbers_share_a_power_of_ten():
    assert "learning rate (×10⁻⁴)" in line_chart(Curve("a", "learning rate", np.arange(3), np.array([1e-4, 5e-4, 0.0])), (430, 220))  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [5.0, np.nan], [np.nan, -2.0, np.inf], [1e12, 2e12]])
def test_odd_curves_stay_within_the_chart(values):
    text = line_chart(curve(values, smooth=True, cut_start=True), (430, 220))
    numbers = [float(number) for path in re.findall(r' d="([^"]*)"', text) for number in re.findall(r"-?[\d.]+", path)]
    assert numbers
    assert all(0 <= number <= 430 for number in numbers)


def test_long_numbers_keep_off_the_name_of_the_axis():
    chart = line_chart(curve([0.712, 0.805, 0.718]), (430, 220))
    tick = re.search(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="end">0\.\d{3}</text>', chart)
    assert float(tick[1]) - 5 * 7 > 16


def test_no_finite_value_is_refused():
    with pytest.raises(ValueError, match=r"Curve\.values must have a finite value"):
        line_chart(curve([np.nan]), (430, 220))


def test_titles_are_escaped():
    text = line_chart(Curve('<b>"', "<i>", np.arange(2), np.array([1.0, 2.0])), (430, 220))
    assert "<b>" not in text
    assert "<i>" not in text
    assert 'aria-label="<' not in text


def test_curves_of_twelve_runs_and_their_numbers_lie_in_the_chart():
    steps = np.arange(1, 3001)
    text = runs_chart([(arm, Curve("a", "loss", steps, 1 / (steps + arm), smooth=True)) for arm in range(12)], "words")
    assert len(re.findall(r'class="arm" d=', text)) == 12
    names = re.findall(r'<text class="arm" x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)</text>', text)
    assert {name for *_, name in names} == {str(arm) for arm in range(1, 13)}
    assert all(float(x) <= SMALL[0] - 12 and 0 <= float(y) <= SMALL[1] for x, y, _ in names)
    heights = sorted(float(y) for _, y, _ in names)
    assert min(np.diff(heights)) >= 12, "no number over another"


def test_dots_and_intervals_lie_in_the_chart():
    rows = [
        Dots("a name of more than 24 letters", 0, [70.0, 71.0, 75.0], 6.6),
        Dots("Raw pixels", None, [63.0]),
    ]
    text = dots_chart(rows, "%", "k-NN")
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', text)]
    assert len(places) == 3 + 1 + 1 + 1
    ends = [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", text)]
    assert all(100 < x < SMALL[0] for x in places + ends)
