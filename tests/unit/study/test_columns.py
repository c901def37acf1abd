import pytest

from pantomim.report.spread import Spread, difference
from pantomim.study.columns import AmongArms, heading, is_share, show


def test_the_spread_among_arms_is_measured_seed_by_seed():
    arms = [Spread.of({0: 1.0, 1: 2.0}), Spread.of({0: 3.0, 1: 8.0, 2: 9.0})]
    among = AmongArms.of(arms)
    assert among is not None
    assert among.mean.by_seed == {0: 2.0, 1: 5.0}
    assert among.range.by_seed == {0: 2.0, 1: 6.0}
    assert among.variance.by_seed == pytest.approx({0: 2.0, 1: 18.0})
    assert among.std.by_seed == pytest.approx({0: 2.0**0.5, 1: 18.0**0.5})
    assert AmongArms.of([*arms, None]) is None, "an arm without a score: no spread"
    assert AmongArms.of([Spread.of({0: 1.0}), Spread.of({1: 1.0})]) is None, "no seed that both have"


def test_a_difference_is_over_the_seeds_that_both_have():
    ours, theirs = Spread.of({0: 0.5, 1: 0.7}), Spread.of({1: 0.4, 2: 0.1})
    found = difference(ours, theirs)
    assert found is not None
    assert found.by_seed == pytest.approx({1: 0.3})
    assert difference(ours, None) is None


def test_columns_in_words_and_digits():
    both = "attentive.top1 - linear.top1"
    assert heading(both) == "attentive − linear, top-1 accuracy (points)"
    assert show(Spread.of({0: 0.25}), both, 1) == "+25.0"
    assert heading("knn.top1") == "knn, top-1 accuracy (%)"
    assert heading("log.loss_align") == "training, loss align"
    assert heading("alignment.explained") == "held-out, latents explained (%)"
    assert is_share("alignment.skipped")
    assert not is_share("alignment.loss")
    assert not is_share("knn.top1 - log.loss")
