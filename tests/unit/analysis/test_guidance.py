"""What the page of a run of CMT-MAE says of its masks."""

import pytest
import torch

from pantomim.analysis.guidance import finding, likeness


def test_masks_are_alike_by_chance_or_wholly():
    random = torch.rand(40, 400, generator=torch.Generator().manual_seed(0)) < 0.75
    assert likeness(random) == pytest.approx((0.75, 0.75), abs=0.01)
    assert likeness(random[:1].expand(4, -1)) == pytest.approx((1.0, 0.75), abs=0.05)


@pytest.mark.parametrize(
    ("entropy", "alike", "words"),
    [(0.9, 0.8, ""), (0.9, 0.95, "their variety has collapsed"), (0.996, 0.76, "All patches score nearly alike")],
)
def test_what_is_wrong_is_said(entropy, alike, words):
    lead, warning = finding(entropy, alike, 0.75)
    assert f"{100 * entropy:.1f} % of the largest entropy" in lead
    assert f"{100 * alike:.0f} % of their masked patches (75 % by chance)" in lead
    assert warning == "" if not words else words in warning
