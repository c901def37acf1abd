import pytest
import torch
from torch.nn import functional as F

from pantomim.nn.tokens import normalise_tokens
from pantomim.targets.distance import Distance

ALL = [Distance("l2"), Distance("l1"), Distance("smooth_l1", beta=2.0), Distance("cosine")]


def pair(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (4 * torch.randn(2, 3, 5, generator=generator, dtype=dtype) for _ in range(2))


def by_hand(form: str, a: torch.Tensor, b: torch.Tensor) -> float:
    if form == "cosine":
        return 1 - float(a @ b / (a.norm() * b.norm()))
    gaps = [abs(float(x)) for x in a - b]
    one = {
        "l2": lambda d: d * d,
        "l1": lambda d: d,
        "smooth_l1": lambda d: 0.5 * d * d / 2.0 if d < 2.0 else d - 1.0,
    }[form]
    return sum(map(one, gaps)) / len(gaps)


@pytest.mark.parametrize("distance", ALL, ids=lambda distance: distance.form)
def test_means_over_the_numbers_of_a_patch_then_over_the_patches_that_count(distance: Distance) -> None:
    prediction, target = pair()
    each = [[by_hand(distance.form, prediction[b, m], target[b, m]) for m in range(3)] for b in range(2)]
    torch.testing.assert_close(distance.each(prediction, target), torch.tensor(each).double())
    torch.testing.assert_close(distance(prediction, target).item(), sum(map(sum, each)) / 6)
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(distance(prediction, target, weight).item(), (each[0][0] + each[0][1] + each[1][0]) / 3)
    assert distance(target, target).item() == pytest.approx(0, abs=1e-12)


def test_the_square_is_one_mean_over_everything_to_the_bit() -> None:
    prediction, target = pair(torch.float32)
    assert torch.equal(Distance("l2")(prediction, target), F.mse_loss(prediction, target))


@pytest.mark.parametrize("distance", ALL, ids=lambda distance: distance.form)
@pytest.mark.parametrize(("dtype", "found"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_is_promoted(distance: Distance, dtype: torch.dtype, found: torch.dtype) -> None:
    prediction, target = pair(dtype)
    assert distance(prediction, target).dtype == found


@pytest.mark.parametrize(
    "given", [{"form": "smooth_l1"}, {"form": "smooth_l1", "beta": 0.0}, {"form": "l2", "beta": 2.0}]
)
def test_beta_goes_with_smooth_l1_alone(given) -> None:
    with pytest.raises(ValueError, match=r"Distance\.beta must"):
        Distance(**given)


def test_tokens_are_normalised_each_by_itself() -> None:
    tokens, _ = pair()
    torch.testing.assert_close(normalise_tokens(tokens, unbiased=False, eps=1e-5), F.layer_norm(tokens, (5,)))
    unbiased = normalise_tokens(tokens, unbiased=True, eps=0.0)
    torch.testing.assert_close(unbiased.std(dim=-1), torch.ones(2, 3).double())


@pytest.mark.parametrize("weighted", [False, True])
def test_what_knows_nothing_predicts_the_mean_of_the_targets_that_count(weighted) -> None:
    target = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1
    weight = (torch.arange(15).view(3, 5) % 3 > 0).double() if weighted else None
    rows = target.flatten(0, 1) if weight is None else target[weight > 0]
    assert Distance("l2").baseline(target, weight) == pytest.approx(rows.var(dim=0, unbiased=False).mean().item())
