from types import SimpleNamespace

from pantomim.report.spread import Spread
from pantomim.study.page import best_rows, measures
from pantomim.study.table import Row, _last_tenth


def row(name: str, value: float, *, baseline: bool = False) -> Row:
    return Row(name, "mae", baseline, {"knn.top1": Spread.of({0: value, 1: value + 0.01})}, {}, {})


def test_a_number_that_a_baseline_beats_is_not_the_best():
    rows = [row("mae", 0.31), row("cae", 0.30), row("raw pixels", 0.34, baseline=True)]
    table = SimpleNamespace(metrics=("knn.top1",), rows=rows)
    assert best_rows(table) == [(2, 1)]
    (measure,) = measures(table)
    assert "None is above raw pixels" in measure.finding([each.name for each in rows])


def test_what_was_not_logged_in_a_step_is_left_out_of_its_mean():
    last = [{"loss": 1.0, "overlap": None, "std": None}, {"loss": 3.0, "overlap": 0.5, "std": None}]
    assert _last_tenth([{"loss": 9.0}] * 18 + last) == {"loss": 2.0, "overlap": 0.5}
