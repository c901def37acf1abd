import pytest
import torch
from torch.nn import functional as F

from pantomim.nn.tokens import patchify, standardise
from pantomim.targets.rgb import RGBTarget, RGBTargetConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


def build(normalise="layer", standardised=True) -> RGBTarget:
    return RGBTargetConfig(normalise=normalise, standardised=standardised).build(4, MEAN, STD).double()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain(standardised: bool = True) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    return patchify(standardise(images(), mean, std) if standardised else images(), 4)


def test_none_are_the_pixels() -> None:
    torch.testing.assert_close(build("none")(images()), plain())
    torch.testing.assert_close(build("none", standardised=False)(images()), plain(False))


def test_layer_is_a_layer_norm_without_weights() -> None:
    torch.testing.assert_close(build("layer")(images()), F.layer_norm(plain(), (48,), eps=1e-6))


def test_patch_has_the_unbiased_variance() -> None:
    pixels = plain()
    variance = pixels.var(dim=-1, keepdim=True)
    expected = (pixels - pixels.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    torch.testing.assert_close(build("patch")(images()), expected)


def test_channel_normalises_each_channel_of_a_patch() -> None:
    found, pixels = build("channel")(images()), plain()
    for channel in range(3):
        values = pixels[1, 2, channel::3]
        expected = (values - values.mean()) / (values.std() + 1e-6)
        torch.testing.assert_close(found[1, 2, channel::3], expected)


@pytest.mark.parametrize("standardised", [True, False])
@pytest.mark.parametrize("normalise", ["none", "channel", "patch", "layer"])
def test_the_target_shown_is_the_image(normalise: str, standardised: bool) -> None:
    target = build(normalise, standardised)
    torch.testing.assert_close(target.to_images(target(images()), images()), images())


def test_the_four_differ_and_all_have_one_width() -> None:
    found = [build(name)(images()) for name in ("none", "channel", "patch", "layer")]
    assert {tuple(values.shape) for values in found} == {(2, 6, 48)}
    assert build().dim == 48
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(found) for b in found[:i])
