"""What the page of a run of CMT-MAE says of its masks."""

import pytest
import torch

from pantomim.analysis.guidance import finding, likeness


def test_masks_are_alike_by_chance_or_wholly():
    draws = torch.rand(2, 40, 400, generator=torch.Generator().manual_seed(0)) < 0.75
    assert likeness(draws) == pytest.approx((0.75, 0.75, 0.75), abs=0.01)
    assert likeness(draws[:1].expand(2, -1, -1)) == pytest.approx((0.75, 1.0, 0.75), abs=0.01)
    assert likeness(draws[:, :1].expand(-1, 4, -1)) == pytest.approx((1.0, 0.75, 0.75), abs=0.05)


@pytest.mark.parametrize(
    ("entropy", "among", "again", "words"),
    [
        (0.9, 0.8, 0.8, ""),
        (0.9, 0.95, 1.0, "different images are nearly the same"),
        (0.996, 0.76, 1.0, "masked nearly alike each time"),
        (0.996, 0.76, 0.8, "All patches score nearly alike"),
    ],
)
def test_what_is_wrong_is_said(entropy, among, again, words):
    lead, warning = finding(entropy, among, again, 0.75)
    assert f"{100 * entropy:.1f} % of the largest entropy" in lead
    assert f"{100 * among:.0f} % of their masked patches, two draws of an image {100 * again:.0f} % (75 % by" in lead
    assert warning == "" if not words else words in warning
