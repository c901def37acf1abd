"""The attentive probe: what it reads, how it is trained, how it is asked for."""

import json

import numpy as np
import pytest
import torch

from pantomim.data.sources import open_source
from pantomim.evaluate import attentive as module
from pantomim.evaluate import protocols
from pantomim.evaluate.attentive import AttentiveProbe, Read, attentive, read_encoder
from pantomim.evaluate.protocols import Evaluate, evaluate, evaluate_to_file
from pantomim.formats.native import save_encoder
from pantomim.formats.timm import load_timm
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import scaled_lr

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path):
    """Three patches of four are redder or greener, the other one is noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 2
    images = rng.integers(0, 100, (90, 3, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, col = rng.integers(0, 2, 2) * 4
        noise = image[:, row : row + 4, col : col + 4].copy()
        image[label] += 100
        image[:, row : row + 4, col : col + 4] = noise
    np.savez(tmp_path / "spots.npz", images=images, labels=labels)
    return str(tmp_path / "spots.npz")


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(1)
    config = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2)
    save_encoder(tmp_path / "run", config.build(), scale={"divisor": 255.0}, recipe="mae_test")
    return str(tmp_path / "run")


def colours(images):
    """Mean colours of the four patches."""
    return torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)


def blind(images):
    return images.new_zeros(len(images), 4, 3)


def score(readers, data, **changes):
    probe = AttentiveProbe(**({"epochs": 60, "warmup_epochs": 5, "base_lr": 1.0} | changes))
    train, test = open_source(data, "train"), open_source(data, "test")
    return attentive(readers, train, test, (8, 8), probe, seed=0, device=CPU)


def test_it_learns_what_the_tokens_hold(data):
    scores = score({"seeing": Read(colours, 1), "blind": Read(blind, 1)}, data)
    assert scores["seeing"]["top1"] > 0.85
    assert scores["blind"]["top1"] <= 0.6


def test_the_authors_values():
    probe = AttentiveProbe()
    assert scaled_lr(probe.base_lr, probe.batch_size) == pytest.approx(0.4)
    assert (probe.epochs, probe.warmup_epochs, probe.min_lr) == (90, 10, 1e-6)


def test_it_is_nesterov_sgd_over_all_chunks_of_a_batch(data, monkeypatch):
    """Three steps by hand, on the chunks that the encoder saw; only the head's own parameters."""
    seen, heads = [], []
    original = module._seeded_head

    def remember(*arguments):
        heads.append(original(*arguments))
        heads.append(original(*arguments))
        return heads[0]

    def reader(images):
        if torch.is_inference_mode_enabled():
            return colours(images)
        seen.append(colours(images))
        return seen[-1]

    labels = []
    renumber = module.renumber
    monkeypatch.setattr(module, "_seeded_head", remember)
    monkeypatch.setattr(module, "renumber", lambda *found: labels.append(renumber(*found)) or labels[-1])
    score({"x": Read(reader, 1)}, data, epochs=3, warmup_epochs=1, base_lr=0.5, chunk=40)
    trained, ours = heads
    assert [len(tokens) for tokens in seen] == [36] * 6
    parameters, momenta = list(ours.train().parameters()), [torch.zeros_like(p) for p in ours.parameters()]
    base = 0.5 * 72 / 256
    for step, lr in enumerate((0.0, base, 1e-6 + (base - 1e-6) * 0.5)):
        losses = [torch.nn.functional.cross_entropy(ours(seen[k]), labels[k]) / 2 for k in (2 * step, 2 * step + 1)]
        slopes = torch.autograd.grad(sum(losses), parameters)
        with torch.no_grad():
            for parameter, momentum, slope in zip(parameters, momenta, slopes, strict=True):
                momentum.mul_(0.9).add_(slope)
                parameter.sub_(lr * (slope + 0.9 * momentum))
    for mine, theirs in zip(parameters, trained.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_is_read_of_an_encoder(run):
    encoder = protocols.load_encoder(run)
    read = read_encoder(encoder, None)
    images = torch.rand(2, 3, 8, 8)
    latent = encoder(images)
    assert read.heads == 2
    assert torch.equal(read.tokens(images), torch.cat([latent.prefix, latent.patches], dim=1))
    assert read_encoder(load_timm("test_vit", pretrained=False), None).heads == 2
    with pytest.raises(ValueError, match=r"AttentiveProbe\.heads must divide the encoder's width 16; got 3"):
        read_encoder(encoder, 3)


QUICK = {"attentive": AttentiveProbe(epochs=4, warmup_epochs=1, base_lr=1.0)}


@pytest.mark.parametrize("batch_wise", [False, True])
def test_as_a_protocol(data, run, tmp_path, batch_wise):
    config = Evaluate(protocol="attentive", encoder=run, data=data, batch_statistics=batch_wise, **QUICK)
    path, result = evaluate_to_file(config)
    name = "attentive-batch-statistics" if batch_wise else "attentive"
    assert path == tmp_path / "run" / "eval" / f"{name}-spots.json"
    assert json.loads(path.read_text()) == result
    assert result["protocol"] == name
    assert result["settings"]["batch_statistics"] is batch_wise
    for contender in ("trained", "untrained", "pixels"):
        assert 0 <= result[contender]["top1"] <= 1
    assert {**evaluate(config), "wall_s": 0} == {**result, "wall_s": 0}
    one = evaluate(Evaluate(**{**vars(config), "contenders": ("trained",)}))
    assert one["trained"] == result["trained"]


def test_batch_statistics_reach_the_test_images(data, run, monkeypatch):
    found = []
    monkeypatch.setattr(protocols, "attentive", lambda *given, **named: found.append(named) or {})
    for batch_wise in (False, True):
        evaluate(Evaluate(protocol="attentive", encoder=run, data=data, batch_statistics=batch_wise, **QUICK))
    assert [named["test_batch_statistics"] for named in found] == [False, True]


def test_pixels_are_read_patch_by_patch(data, run, monkeypatch):
    found = {}
    monkeypatch.setattr(protocols, "attentive", lambda readers, *given, **named: found.update(readers) or {})
    evaluate(Evaluate(protocol="attentive", encoder=run, data=data, **QUICK))
    assert found["pixels"].tokens(torch.rand(2, 3, 8, 8)).shape == (2, 4, 48)
    assert found["pixels"].heads == 2


def test_a_frozen_encoder_stays_as_it_is(data, run, monkeypatch):
    encoder = protocols.load_encoder(run)

    def unfrozen(*given, **named):
        encoder.norm.bias.data.add_(1)
        return {}

    monkeypatch.setattr(protocols, "load_encoder", lambda spec: encoder)
    monkeypatch.setattr(protocols, "attentive", unfrozen)
    with pytest.raises(AssertionError, match="frozen encoder has changed"):
        evaluate(Evaluate(protocol="attentive", encoder=run, data=data, contenders=("trained",), **QUICK))


@pytest.mark.parametrize(
    "wrong",
    [{"warmup_epochs": 90}, {"base_lr": 0.0}, {"min_lr": -1.0}, {"batch_size": 1}, {"chunk": 1}, {"heads": 0}],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=r"AttentiveProbe\."):
        AttentiveProbe(**wrong)


def test_batch_statistics_are_for_this_probe_alone():
    with pytest.raises(ValueError, match=r"batch_statistics must be left out but for attentive; got it with knn"):
        Evaluate(protocol="knn", encoder="run", data="mnist", batch_statistics=True)


def test_the_cached_protocols_refuse_maes_training():
    with pytest.raises(ValueError, match=r"must be 'cached' for attentive"):
        Evaluate(protocol="attentive", encoder="run", data="mnist", training="mae")
