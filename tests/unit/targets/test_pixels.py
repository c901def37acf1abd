import pytest
import torch
from torch.nn import functional as F

from pantomim.nn.tokens import patchify, standardise, take
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.distance import Distance
from pantomim.targets.pixels import PixelTarget, PixelTargetConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
ENCODER = EncoderConfig(image_size=(8, 12), patch_size=4, width=16, depth=1, heads=2, mean=MEAN, std=STD).build()


def build(normalise="patch", standardised=True, **changes) -> PixelTarget:
    return PixelTargetConfig(normalise=normalise, standardised=standardised, **changes).build(ENCODER).double()


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


def test_patch_has_mean_0_and_unbiased_std_1() -> None:
    found, pixels = build("patch")(images()), plain()
    variance = pixels.var(dim=-1, keepdim=True)
    assert torch.equal(found, (pixels - pixels.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt())  # to the bit
    torch.testing.assert_close(found.mean(dim=-1), torch.zeros(2, 6).double())
    torch.testing.assert_close(found.std(dim=-1), torch.ones(2, 6).double(), rtol=0, atol=1e-5)


def test_channel_normalises_each_channel_of_a_patch() -> None:
    found, pixels = build("channel")(images()), plain()
    for channel in range(3):
        values = pixels[1, 2, channel::3]
        expected = (values - values.mean()) / (values.std() + 1e-6)
        torch.testing.assert_close(found[1, 2, channel::3], expected)


def test_a_constant_patch_gives_zeros() -> None:
    """Constant after channel normalisation: every channel at its mean."""
    constant = torch.tensor(MEAN).double().view(1, 3, 1, 1).expand(2, -1, 8, 12)
    assert (build()(constant).abs() < 1e-3).all()


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


@pytest.mark.parametrize("form", ["l1", "l2"])
def test_the_score_is_the_mean_over_masked_pixels_and_channels(form: str) -> None:
    target, ids = build("none", distance=Distance(form)), torch.tensor([[0, 4], [5, 2]])
    prediction = torch.randn(2, 2, 48, dtype=torch.float64, requires_grad=True)
    loss = target.loss(prediction, take(target(images()), ids))
    error = prediction - take(plain(), ids)
    torch.testing.assert_close(loss, (error.abs() if form == "l1" else error.square()).mean())
    loss.backward()
    assert prediction.grad is not None


def test_plain_and_normalised_losses_agree_after_unnormalising() -> None:
    raw, normalised = build("none"), build("patch")
    prediction = torch.randn(2, 6, 48, dtype=torch.float64)
    shown = patchify(normalised.to_images(prediction, images()), 4)
    mean, std = torch.tensor(MEAN).double().repeat(16), torch.tensor(STD).double().repeat(16)
    pixels = plain()
    spread = (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    apart = raw.distance.each(((shown - mean) / std) / spread, raw(images()) / spread)
    torch.testing.assert_close(apart.mean(), normalised.loss(prediction, normalised(images())))


def test_it_is_never_in_training_mode_and_has_no_gradient() -> None:
    target = build()
    assert not target.train().training
    assert not target(images().requires_grad_()).requires_grad


def test_sides_must_fit_the_patch() -> None:
    with pytest.raises(ValueError, match="a multiple of"):
        build()(torch.rand(1, 3, 8, 10).double())
