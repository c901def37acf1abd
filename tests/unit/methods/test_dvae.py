import math

import numpy as np
import pytest
import torch

from pantomim.core.batch import Batch
from pantomim.methods.dvae import (
    Annealing,
    DVAEConfig,
    DVAEDraws,
    kl_from_uniform,
    logit_laplace_nll,
    perplexity,
)
from pantomim.nn.dvae import DVAESizes

SIZES = DVAESizes(vocabulary=12, width=8, code_width=6, blocks=1, stride=4)
CONFIG = DVAEConfig(
    sizes=SIZES,
    image_size=(8, 8),
    temperature=Annealing(1.0, 1 / 16, 40),
    kl_weight=Annealing(0.0, 6.6, 10),
    momentum=0.9,
)


def config(**changes):
    return DVAEConfig(**{"sizes": SIZES, "image_size": (8, 8), **changes})


def batch(size=4, start=0, total=None):
    images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, start=start, total=size if total is None else total)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return CONFIG.build()


def drawn(method, given, step=3, seed=7):
    return method.draw(given, step, torch.Generator().manual_seed(seed))


def test_loss_by_the_formulas_of_the_paper(method):
    method.double()
    images = batch().images.double()
    draws = drawn(method, Batch(images, total=4))
    outputs = method(Batch(images, total=4), draws)

    y = 0.8 * images.numpy() + 0.1
    logits = method.networks.encoder(torch.from_numpy(y)).detach().numpy()
    noise, temperature, beta = draws.noise.numpy(), draws.temperature.item(), draws.kl_weight.item()
    relaxed = np.exp((logits + noise) / temperature)
    relaxed /= relaxed.sum(1, keepdims=True)
    prediction = method.networks.decoder(torch.from_numpy(relaxed)).detach().numpy()
    mu, b = prediction[:, :3], np.exp(prediction[:, 3:])
    nll = np.log(2 * b) + np.log(y) + np.log(1 - y) + np.abs(np.log(y / (1 - y)) - mu) / b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kl = (p * (np.log(p) + np.log(12))).sum(1)
    per_image = (nll.sum((1, 2, 3)) + beta * kl.sum((1, 2))) / (3 * 8 * 8)
    assert outputs["loss"].item() == pytest.approx(per_image.mean(), rel=1e-12)
    assert outputs["nll"].item() == pytest.approx(nll.mean(), rel=1e-12)
    assert outputs["kl"].item() == pytest.approx(kl.mean(), rel=1e-12)


@pytest.mark.parametrize(("stride", "factor"), [(8, 192), (4, 48)])
def test_weight_of_the_kl_term_per_pixel_value(stride, factor):
    sizes = DVAESizes(vocabulary=5, width=4, code_width=2, blocks=1, stride=stride)
    method = DVAEConfig(sizes=sizes, image_size=(16, 16)).build().double()
    given = Batch(torch.rand(2, 3, 16, 16).double(), total=2)
    draws = drawn(method, given)
    with_kl = DVAEDraws(draws.noise, draws.temperature, torch.tensor(6.6, dtype=torch.float64))
    outputs = method(given, with_kl)
    assert (outputs["loss"] - outputs["nll"]).item() == pytest.approx(6.6 / factor * outputs["kl"].item(), rel=1e-9)


@pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.0, -1.0), (-2.0, 0.5)])
def test_the_likelihood_is_a_density(location, log_scale):
    """It integrates to 1 over the open interval from 0 to 1."""
    edges = torch.linspace(-40, 40, 400_001, dtype=torch.float64).sigmoid()
    middles, widths = (edges[1:] + edges[:-1]) / 2, edges.diff()
    inside = (middles > 0) & (middles < 1) & (widths > 0)
    y = middles[inside].view(1, 1, 1, -1)
    prediction = torch.tensor([location, log_scale]).double().view(1, 2, 1, 1).expand(1, 2, 1, y.shape[-1])
    density = (-logit_laplace_nll(prediction, y)).exp().flatten()
    assert (density * widths[inside]).sum().item() == pytest.approx(1, abs=1e-4)


def test_log_scales_are_cut():
    y = torch.full((1, 1, 1, 1), 0.3)
    wild = torch.tensor([0.0, -1000.0]).view(1, 2, 1, 1)
    assert logit_laplace_nll(wild, y).item() < 1e4
    tame = torch.tensor([0.0, -7.0]).view(1, 2, 1, 1)
    assert torch.equal(logit_laplace_nll(wild, y), logit_laplace_nll(tame, y))


def test_kl_from_nothing_to_everything():
    even, certain = torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 2, 2)
    certain[:, 3] = 100
    assert kl_from_uniform(even).abs().max() < 1e-6
    torch.testing.assert_close(kl_from_uniform(certain), torch.full((1, 2, 2), math.log(8)))


def test_kl_does_not_depend_on_the_temperature(method):
    given = batch()
    draws = drawn(method, given)
    cold = DVAEDraws(draws.noise, draws.temperature / 10, draws.kl_weight)
    assert torch.equal(method(given, draws)["kl"], method(given, cold)["kl"])
    assert not torch.equal(method(given, draws)["nll"], method(given, cold)["nll"])


def test_annealing_is_half_a_cosine_that_stays():
    ramp = Annealing(1.0, 1 / 16, 8)
    assert [ramp.at(step) for step in (0, 4, 8, 100)] == pytest.approx([1, 17 / 32, 1 / 16, 1 / 16])
    assert ramp.at(2) == pytest.approx(1 / 16 + 15 / 16 * (1 + math.cos(math.pi / 4)) / 2)


def test_the_papers_values_are_the_defaults():
    paper = DVAEConfig()
    assert (paper.temperature.at(0), paper.temperature.at(150_000)) == (1, 1 / 16)
    assert (paper.kl_weight.at(0), paper.kl_weight.at(5_000)) == (0, 6.6)
    assert paper.momentum == 0.999


def test_annealing_over_a_short_run():
    short = DVAEConfig().annealed_over(1000)
    assert (short.temperature.steps, short.kl_weight.steps) == (500, 50)
    assert DVAEConfig().annealed_over(1).temperature.steps == 1


def test_what_is_drawn_is_standard_gumbel(method):
    draws = method.draw(Batch(torch.zeros(200, 3, 8, 8), total=200), 0, torch.Generator().manual_seed(0))
    noise = draws.noise
    assert noise.shape == (200, 12, 2, 2)
    assert noise.isfinite().all()
    spread = math.pi / math.sqrt(6)
    assert noise.mean().item() == pytest.approx(0.5772, abs=5 * spread / math.sqrt(noise.numel()))
    assert noise.std().item() == pytest.approx(spread, rel=0.05)
    assert (noise[0] - noise[1]).abs().min() > 0  # images differ


def test_draws_do_not_depend_on_how_the_batch_is_shared_out(method):
    whole = drawn(method, batch(6))
    parts = [drawn(method, Batch(batch(6).images[a:b], start=a, total=6)) for a, b in ((0, 2), (2, 6))]
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    assert not torch.equal(drawn(method, batch(6), seed=8).noise, whole.noise)


def test_draws_follow_the_schedules(method):
    for step in (0, 3, 100):
        draws = drawn(method, batch(), step)
        assert draws.temperature.item() == pytest.approx(CONFIG.temperature.at(step))
        assert draws.kl_weight.item() == pytest.approx(CONFIG.kl_weight.at(step))


def test_gradients_reach_the_trained_networks_and_no_average(method):
    given = batch()
    method(given, drawn(method, given))["loss"].backward()
    for name, parameter in method.named_parameters():
        if name.startswith("average."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_forward_repeats_exactly(method):
    given = batch()
    draws = drawn(method, given)
    first = method(given, draws)
    torch.rand(3)
    assert torch.equal(first["loss"], method(given, draws)["loss"])


def test_averages_follow_the_weights(method):
    before = [parameter.clone() for parameter in method.average.parameters()]
    trained = [*method.networks.encoder.parameters(), *method.networks.decoder.parameters()]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1.0)
    method.update_ema(0)
    for old, new, weight in zip(before, method.average.parameters(), trained, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * weight)
    assert method.exports() == {"tokenizer": method.average.copy}


def test_it_learns(method):
    colours = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    given = Batch(colours.expand(8, 3, 8, 8).clone(), total=8)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        outputs = method(given, drawn(method, given, step, seed=step))
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        method.update_ema(step)
        losses.append(outputs["nll"].item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_half_precision_outside_changes_little(method):
    given = batch()
    draws = drawn(method, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(given, draws)
    assert rough["loss"].dtype == torch.float32
    assert rough["loss"].item() == pytest.approx(method(given, draws)["loss"].item(), rel=0.02)


def test_perplexity_of_a_batch():
    ids = torch.tensor([[0, 0, 1, 3]])
    assert perplexity(ids, 8).item() == pytest.approx(2**1.5)
    assert perplexity(torch.arange(8).view(2, 4), 8).item() == pytest.approx(8)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_size": (8, 10)}, "multiple of the tokenizer's stride, 4; got 8x10"),
        ({"image_size": (2, 8)}, "multiple of the tokenizer's stride"),
        ({"temperature": Annealing(1.0, 0.0, 5)}, r"DVAEConfig\.temperature must stay above 0"),
        ({"momentum": 1.0}, r"DVAEConfig\.momentum must be in \[0, 1\); got 1\.0"),
    ],
)
def test_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        config(**changes)


@pytest.mark.parametrize(("values", "name"), [((1.0, 0.5, 0), "steps"), ((0.0, -1.0, 5), "end")])
def test_annealing_out_of_range(values, name):
    with pytest.raises(ValueError, match=rf"Annealing\.{name} must be at least"):
        Annealing(*values)
