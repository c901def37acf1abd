import numpy as np
import pytest
import torch

from pantomim.masking.noise import PRESETS, Noise, color_filter, equalise, make_bank

COLORS = [color for color in PRESETS if color != "white"]


def response(color, sigma, blur="transfer_function", side=64):
    """What a filter does to each frequency, measured on an impulse."""
    impulse = torch.zeros(side, side, dtype=torch.float64)
    impulse[0, 0] = 1
    return torch.fft.fft2(color_filter(impulse, color, sigma, blur)).real


def test_transfer_functions_are_the_papers() -> None:
    frequency = torch.fft.fftfreq(64, dtype=torch.float64)
    squared = frequency[:, None] ** 2 + frequency**2
    one, two = (torch.exp(-2 * torch.pi**2 * sigma**2 * squared) for sigma in (0.8, 1.6))
    expected = {"red": one, "blue": 1 - one, "green": one - two, "purple": 1 - one + two}
    for color, want in expected.items():
        sigma = (0.8,) if color in ("red", "blue") else (0.8, 1.6)
        torch.testing.assert_close(response(color, sigma), want, atol=1e-12, rtol=0)
    peak = response("green", (0.8, 1.6))[0].argmax() / 64
    assert abs(peak - np.sqrt(np.log(4) / (2 * np.pi**2 * (1.6**2 - 0.8**2)))) < 1 / 64  # 0.191 cycles a patch


def test_both_blurs_agree_where_sigma_is_large_enough() -> None:
    wide, narrow = (
        (response("red", (sigma,), "sampled_kernel") - response("red", (sigma,))).abs().max() for sigma in (1.6, 0.5)
    )
    assert wide < 1e-3
    assert narrow > 0.05


def test_a_sampled_kernel_is_a_periodic_convolution() -> None:
    field = torch.rand(12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.exp(-0.5 * (torch.arange(-6, 7).double() / 1.0) ** 2)
    weights /= weights.sum()
    want = sum(
        a * b * field.roll((i, j), (0, 1))
        for i, a in zip(range(-6, 7), weights, strict=True)
        for j, b in zip(range(-6, 7), weights, strict=True)
    )
    torch.testing.assert_close(color_filter(field, "red", (1.0,), "sampled_kernel"), want, atol=1e-12, rtol=0)


def test_equalised_values_are_ranks() -> None:
    field = torch.tensor([[[0.3, -2.0], [7.0, 0.5]], [[4.0, 3.0], [2.0, 1.0]]])
    want = torch.tensor([[[1, 0], [3, 2]], [[3, 2], [1, 0]]]) / 3
    torch.testing.assert_close(equalise(field), want)


@pytest.mark.parametrize("color", COLORS)
def test_a_single_pass_is_the_equation_with_or_without_equalisation(color) -> None:
    plain, flat = (make_bank(Noise(color, passes=1, equalise=kind, patterns=2, side=32)) for kind in (False, True))
    order = flat.flatten(1).argsort(dim=1)
    assert (plain.flatten(1).gather(1, order).diff(dim=1) >= 0).all()  # float32 may see equal values, not reversed ones
    white = make_bank(Noise("white", patterns=1, side=32)).double()
    want = color_filter(white, color, PRESETS[color].sigma, "sampled_kernel")
    torch.testing.assert_close(make_bank(Noise(color, passes=1, equalise=False, patterns=1, side=32)).double(), want)


@pytest.mark.parametrize("color", PRESETS)
def test_banks_are_their_seed_s(color) -> None:
    bank, again, other = (make_bank(Noise(color, patterns=3, side=24, seed=seed)) for seed in (0, 0, 1))
    assert bank.shape == (3, 24, 24)
    assert bank.dtype == torch.float32
    assert torch.equal(bank, again)
    assert not torch.equal(bank, other)
    assert len({tuple(pattern.flatten().tolist()) for pattern in bank}) == 3
    assert all(len(pattern.unique()) == 24 * 24 for pattern in bank)  # no ties: float32 tells all ranks apart


def test_ranks_of_the_default_size_survive_float32() -> None:
    ranks = (torch.arange(256 * 256, dtype=torch.float64) / (256 * 256 - 1)).float()
    assert (ranks.diff() > 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"color": "green", "sigma": (1.0,)}, "2 number"),
        ({"color": "red", "sigma": (1.0, 2.0)}, "1 number"),
        ({"color": "purple", "sigma": (2.0, 1.0)}, "the second above the first"),
        ({"color": "blue", "sigma": (0.0,)}, "from 0.1 to the side"),
        ({"color": "blue", "sigma": (float("nan"),)}, "from 0.1 to the side"),
        ({"color": "blue", "sigma": (float("inf"),)}, "from 0.1 to the side"),
        ({"color": "green", "sigma": (1.0, 300.0)}, "from 0.1 to the side"),
        ({"color": "blue", "passes": 0}, "passes must be at least 1"),
        ({"patterns": 0}, "patterns must be at least 1"),
        ({"side": 1}, "side must be at least 2"),
        ({"patterns": 100_000}, "4 GiB at most"),
    ],
)
def test_what_makes_no_noise_is_refused(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        Noise(**settings)
