"""Moving averages: schedules, half-lives, and the update against its closed form."""

import copy
import math

import pytest
import torch
from torch import nn

from pantomim.nn.momentum import Momentum, follow, momentum_of_half_life


def test_a_constant_needs_no_length() -> None:
    assert [Momentum(0.9).at(step) for step in (0, 5, 10**9)] == [0.9] * 3


def test_half_a_cosine_is_the_papers_formula() -> None:
    momentum = Momentum(0.99, 1.0)
    for step in (0, 1, 30, 99, 100):
        expected = 1 - 0.5 * (1 + math.cos(math.pi * step / 100)) * (1 - 0.99)
        assert momentum.at(step, 100) == pytest.approx(expected, rel=1e-15)
    assert momentum.at(0, 100) == pytest.approx(0.99, rel=1e-15)
    assert momentum.at(50, 100) == pytest.approx(0.995, rel=1e-15)
    assert momentum.at(100, 100) == momentum.at(500, 100) == 1.0


def test_a_ramp_has_its_own_length() -> None:
    momentum = Momentum(0.999, 0.9998, shape="linear", steps=10)
    assert [momentum.at(step) for step in (0, 5, 10, 20)] == pytest.approx([0.999, 0.9994, 0.9998, 0.9998])
    assert Momentum(0.5, 1.0, "linear").at(1, 4) == 0.625


def test_a_schedule_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Momentum\.at must be given the length of the run"):
        Momentum(0.99, 1.0).at(3)


@pytest.mark.parametrize("wrong", [{"start": 1.1}, {"end": -0.1}, {"end": 1.0, "steps": 0}])
def test_impossible_values_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"Momentum\.(start|end|steps) must be"):
        Momentum(**wrong)
    with pytest.raises(ValueError, match=r"Momentum\.steps goes with an end; got 5"):
        Momentum(steps=5)


def test_a_half_life() -> None:
    momentum = momentum_of_half_life(20.0)
    assert momentum**20 == pytest.approx(0.5, rel=1e-14)
    with pytest.raises(ValueError, match=r"momentum_of_half_life\.steps must be above 0"):
        momentum_of_half_life(0.0)


def test_a_copy_forgets_as_in_closed_form() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    copied = copy.deepcopy(module)
    begun = [parameter.clone() for parameter in copied.parameters()]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
        module[1].running_mean.add_(7.0)
    for _ in range(5):
        follow(copied, module, 0.9)
    for was, now, target in zip(begun, copied.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9**5 * was + (1 - 0.9**5) * target)
    assert not copied[1].running_mean.any()  # statistics are its own


def test_what_is_fixed_is_copied_and_buffers_on_request() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copied = copy.deepcopy(module)
    module[0].bias.requires_grad_(False).add_(1.0)
    module[1].running_mean.add_(7.0)
    follow(copied, module, 0.9, buffers=True)
    assert torch.equal(copied[0].bias, module[0].bias)
    assert torch.equal(copied[1].running_mean, module[1].running_mean)


def test_the_ends_are_exact() -> None:
    module, copied = nn.Linear(3, 4), nn.Linear(3, 4)
    before = copied.weight.clone()
    follow(copied, module, 1.0)
    assert torch.equal(copied.weight, before)
    follow(copied, module, 0.0)
    assert torch.equal(copied.weight, module.weight)
