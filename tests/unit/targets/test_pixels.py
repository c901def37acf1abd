import pytest
import torch

from pantomim.nn.tokens import patchify
from pantomim.targets.pixels import PixelTarget, PixelTargetConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.1)


def target(normalize: bool) -> PixelTarget:
    return PixelTargetConfig(normalize=normalize).build(4, MEAN, STD).double()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 12, dtype=torch.float64)


def test_plain_target_is_the_normalised_pixels() -> None:
    pixels = images()
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(target(False)(pixels), patchify((pixels - mean) / std, 4))


def test_normalised_target_has_mean_0_and_unbiased_deviation_1() -> None:
    patches = target(True)(images())
    torch.testing.assert_close(patches.mean(dim=-1), torch.zeros(2, 6).double())
    torch.testing.assert_close(patches.std(dim=-1), torch.ones(2, 6).double(), rtol=0, atol=1e-5)


def test_a_constant_patch_gives_zeros() -> None:
    """Constant after channel normalisation: every channel at its mean."""
    constant = torch.tensor(MEAN).double().view(1, 3, 1, 1).expand(2, -1, 8, 12)
    assert (target(True)(constant).abs() < 1e-3).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_the_true_target_looks_like_the_image(normalize: bool) -> None:
    pixels = images()
    torch.testing.assert_close(target(normalize).to_images(target(normalize)(pixels), pixels), pixels)


def test_one_mean_and_deviation_per_channel() -> None:
    assert target(True).dim == 48
    with pytest.raises(ValueError, match="one value per channel"):
        PixelTarget(4, MEAN, (0.1, 0.2), True)


def test_sides_must_fit_the_patch() -> None:
    with pytest.raises(ValueError, match="a multiple of"):
        target(True)(torch.rand(1, 3, 8, 10).double())
