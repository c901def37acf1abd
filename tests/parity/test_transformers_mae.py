"""Our MAE against transformers' and lightly's on equal weights and masks: loss and every gradient, in float64."""

import pytest
import torch
from benchmark_scripts import benchmark

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.methods.base import Draws
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import standardise
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.pixels import PixelTargetConfig

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def rivals():
    """The models that the benchmark times, with its own maps of the weights."""
    return benchmark("rivals")


@pytest.fixture(params=[True, False], ids=["normalised target", "plain target"])
def config(request: pytest.FixtureRequest) -> MAEConfig:
    return MAEConfig(
        encoder=EncoderConfig(image_size=(16, 16), patch_size=4, width=16, depth=2, heads=2),
        decoder=DecoderConfig(width=8, depth=2, heads=2),
        target=PixelTargetConfig(normalise="patch" if request.param else "none"),
    )


def randomised(config: MAEConfig) -> MAE:
    """Every parameter moved from its initial value, so that none can be ignored unseen."""
    torch.manual_seed(0)
    method = config.build()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return method


def inputs(method: MAE, config: MAEConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Mask]:
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    noise = torch.rand(3, 16)
    normalised = standardise(images, method.encoder.mean, method.encoder.std)
    return images, normalised, noise, Mask.from_scores(noise, config.masker.num_masked((4, 4)))


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_transformers(rivals, config: MAEConfig) -> None:
    ours = randomised(config)
    theirs = rivals.transformers_mae(ours, config).double()
    images, normalised, noise, mask = inputs(ours.double(), config)
    our_loss, their_loss = ours(Batch(images, total=3), Draws(mask))["loss"], theirs(normalised, noise=noise).loss
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-12, atol=0)
    expected = gradients(theirs, their_loss)
    found = rivals.transformers_names(gradients(ours, our_loss), config)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_lightly(rivals, config: MAEConfig) -> None:
    pytest.importorskip("lightly.models.modules")
    ours = randomised(config)
    theirs = rivals.lightly_mae(ours, config).double()
    images, normalised, _, mask = inputs(ours.double(), config)
    our_loss = ours(Batch(images, total=3), Draws(mask))["loss"]
    their_loss = theirs(normalised, *rivals.lightly_ids(mask))
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-12, atol=0)
    expected = gradients(theirs, their_loss)
    found = rivals.lightly_names(gradients(ours, our_loss))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
