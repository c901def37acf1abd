import pytest
import torch

from pantomim.targets.distance import Distance
from pantomim.targets.pair import Blend, Concat, Weighted
from pantomim.teachers.mixing import Mixing

WEIGHT = torch.tensor(0.3)


@pytest.fixture
def features():
    return {"teacher": torch.randn(2, 5, 8), "student": torch.randn(2, 5, 8)}


@pytest.mark.parametrize(
    ("distance", "same"),
    [(Distance("l2"), True), (Distance("smooth_l1", beta=0.5), False), (Distance("cosine"), False)],
    ids=lambda value: getattr(value, "form", ""),
)
def test_a_blend_has_the_gradient_of_one_shared_head_for_squares_alone(features, distance, same):
    shared = torch.randn(2, 5, 8, requires_grad=True)
    weighted = Weighted(distance=distance).loss(torch.cat([shared, shared], dim=2), features, WEIGHT)["loss"]
    blended = Blend(distance=distance).loss(shared, features, WEIGHT)["loss"]
    ours, theirs = (torch.autograd.grad(loss, shared)[0] for loss in (weighted, blended))
    assert torch.allclose(ours, theirs, atol=1e-6) == same
    if same:
        gap = 0.3 * 0.7 * (features["teacher"] - features["student"]).square().mean()
        torch.testing.assert_close(weighted, blended + gap)


def test_concat_is_half_of_both(features):
    prediction, half = torch.randn(2, 5, 16), torch.tensor(0.5)
    both = Weighted().loss(prediction, features, half)
    torch.testing.assert_close(Concat().loss(prediction, features, WEIGHT)["loss"], both["loss"])
    torch.testing.assert_close((both["loss_teacher"] + both["loss_student"]) / 2, both["loss"])


@pytest.mark.parametrize("pair", [Weighted(), Blend()], ids=lambda pair: pair.kind)
def test_one_network_alone(features, pair):
    prediction = torch.randn(2, 5, 8)
    for name, weight in (("teacher", 1.0), ("student", 0.0)):
        outputs = pair.loss(prediction, {name: features[name]}, torch.tensor(weight))
        assert outputs.keys() == {"loss", "baseline", "target_teacher_weight"}
        assert torch.equal(outputs["loss"], Distance("l2")(prediction, features[name]))


def test_heads_and_weights():
    widths, mixing = {"teacher": 24, "student": 16}, Mixing(teacher_weight=0.2, warmup_share=0.0)
    assert Weighted().heads(widths) == [24, 16]
    assert Concat().heads(widths) == [40]
    assert Blend().heads({"teacher": 16, "student": 16}) == [16]
    with pytest.raises(ValueError, match="of another width"):
        Blend().heads(widths)
    assert Weighted().weight(mixing, 0, 1) == 0.2
    assert Weighted(teacher_weight=1.0).networks(mixing) == ("teacher",)
    assert Concat().networks(Mixing(teacher_weight=1.0)) == ("teacher", "student")


def test_a_part_without_weight_is_not_logged(features):
    outputs = Weighted().loss(torch.randn(2, 5, 16), features, torch.tensor(1.0))
    assert outputs["loss_student"].isnan()
    assert torch.equal(outputs["loss"], outputs["loss_teacher"])
