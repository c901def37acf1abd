import math

import pytest
import torch

from pantomim.teachers.mixing import Mixing, Scores, evenness, spread


def test_stages_and_schedules():
    mixing = Mixing(teacher_weight=0.2, warmup_share=0.2, schedule="linear", start=1.0)
    found = [mixing.at(step, 12) for step in range(12)]
    assert found[:4] == [1.0] * 4  # three of the first phase, and the schedule's first
    assert found[-1] == pytest.approx(0.2)
    assert found[7] == pytest.approx(0.6)
    assert mixing.at(11, 12, last=0.6) == pytest.approx(0.6)
    cosine = Mixing(teacher_weight=0.2, warmup_share=0.0, schedule="cosine", start=0.0)
    assert cosine.at(0, 11) == 0.0
    assert cosine.at(5, 11) == pytest.approx(0.1)
    assert Mixing(warmup_share=0.0).at(5, None) == 0.5
    assert Mixing(teacher_weight=1.0).at(5, None) == 1.0
    assert [Mixing().at(step, 30) for step in (2, 3)] == [1.0, 0.5]  # a tenth of 30 steps is 3
    with pytest.raises(ValueError, match="length of the run"):
        mixing.at(0, None)


@pytest.mark.parametrize(
    ("settings", "networks"),
    [
        ({}, ("teacher", "student")),
        ({"teacher_weight": 1.0}, ("teacher",)),
        ({"teacher_weight": 0.0}, ("teacher", "student")),  # the teacher alone at first
        ({"teacher_weight": 0.0, "warmup_share": 0.0}, ("student",)),
        ({"teacher_weight": 1.0, "warmup_share": 0.0, "schedule": "linear", "start": 0.0}, ("teacher", "student")),
    ],
    ids=str,
)
def test_who_counts_at_some_step(settings, networks):
    assert Mixing(**settings).networks() == networks


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher_weight": 30.0}, r"Mixing.teacher_weight must be in \[0, 1\]"),
        ({"schedule": "linear"}, "start goes with a schedule"),
        ({"start": 0.5}, "start goes with a schedule"),
    ],
    ids=str,
)
def test_what_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Mixing(**settings)


def test_scores():
    even, peaked = torch.ones(2, 16), torch.eye(16)[:2]
    assert evenness(even).item() == pytest.approx(1)
    assert evenness(peaked).item() == pytest.approx(0)
    torch.testing.assert_close(Scores(temperature=0.5)(torch.tensor([[1.0, 3.0]])), torch.tensor([[0.1, 0.9]]))
    attention = torch.rand(3, 196) / 196
    scores = Scores(temperature=0.01)(attention)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(3))
    assert torch.equal(scores.argmax(dim=1), attention.argmax(dim=1))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        Scores(temperature=0.0)


def test_spread_is_between_images_and_not_between_places():
    tokens = torch.randn(64, 16, 32)
    assert spread(tokens) == pytest.approx(1, abs=0.1)
    assert spread(3 * tokens + 300) < 0.05
    assert math.isnan(spread(tokens[:1]))  # a single image cannot tell
    assert spread(tokens[:1].expand(64, 16, 32)) == 0
