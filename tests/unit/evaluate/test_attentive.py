"""The attentive probe: what it reads, how it is trained, how it is asked for."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
from probing import scores_of
from torch import nn

from pantomim.evaluate import attentive as module
from pantomim.evaluate import evaluate
from pantomim.evaluate.attentive import Attentive, all_tokens
from pantomim.formats import load_encoder
from pantomim.formats.native import save_encoder
from pantomim.formats.timm import load_timm
from pantomim.methods.probe import Frozen, Probe
from pantomim.nn.vit import EncoderConfig
from pantomim.optim import scaled_lr


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


def score(readers, data, work, **changes):
    probe = Attentive("run", data, **({"epochs": 60, "warmup_epochs": 5, "base_lr": 1.0} | changes))
    return scores_of(readers, probe, probe.head(1), work)


def test_it_learns_what_the_tokens_hold(data, tmp_path):
    scores = score({"seeing": colours, "blind": blind}, data, tmp_path)
    assert scores["seeing"]["top1"] > 0.85
    assert scores["blind"]["top1"] <= 0.6


def test_the_authors_values():
    probe = Attentive("run", "data")
    assert scaled_lr(probe.base_lr, probe.batch_size) == pytest.approx(0.4)
    assert (probe.epochs, probe.warmup_epochs, probe.min_lr) == (90, 10, 1e-6)


def test_it_is_nesterov_sgd_over_all_chunks_of_a_batch(data, tmp_path, monkeypatch):
    """Three steps by hand, on the chunks that the encoder saw; only the head's own parameters."""
    seen, heads, forward = [], [], Probe.forward

    def remember(self, batch, draws=None):
        if not heads:
            heads.extend([self.model, copy.deepcopy(self.model)])
        seen.append((colours(batch.images), batch.labels))
        return forward(self, batch, draws)

    monkeypatch.setattr(Probe, "forward", remember)
    score({"x": colours}, data, tmp_path, epochs=3, warmup_epochs=1, base_lr=0.5, chunk=40, hold_out=False)
    trained, ours = heads
    assert [len(tokens) for tokens, _ in seen] == [36] * 6
    parameters, momenta = list(ours.train().parameters()), [torch.zeros_like(p) for p in ours.parameters()]
    base = 0.5 * 72 / 256
    for step, lr in enumerate((0.0, base, 1e-6 + (base - 1e-6) * 0.5)):
        chunks = seen[2 * step : 2 * step + 2]
        losses = [torch.nn.functional.cross_entropy(ours(tokens), labels) / 2 for tokens, labels in chunks]
        slopes = torch.autograd.grad(sum(losses), parameters)
        with torch.no_grad():
            for parameter, momentum, slope in zip(parameters, momenta, slopes, strict=True):
                momentum.mul_(0.9).add_(slope)
                parameter.sub_(lr * (slope + 0.9 * momentum))
    for mine, theirs in zip(parameters, trained.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_is_read_of_an_encoder(run):
    encoder = load_encoder(run)
    probe, images = Attentive("run", "data"), torch.rand(2, 3, 8, 8)
    features = encoder(images)
    assert torch.equal(all_tokens(encoder, images), torch.cat([features.prefix, features.patches], dim=1))
    assert probe.heads_for(encoder) == 2
    assert probe.heads_for(load_timm("test_vit", pretrained=False)) == 2
    with pytest.raises(ValueError, match=r"Attentive\.heads must divide the encoder's width 16; got 3"):
        Attentive("run", "data", heads=3).heads_for(encoder)


QUICK = partial(Attentive, epochs=4, warmup_epochs=1, base_lr=1.0)


@pytest.mark.parametrize("batch_wise", [False, True])
def test_as_a_protocol(data, run, tmp_path, batch_wise):
    evaluation = QUICK(run, data, batch_statistics=batch_wise)
    path, result = evaluation.to_file()
    name = "attentive-batch-statistics" if batch_wise else "attentive"
    assert path == tmp_path / "run" / "eval" / f"{name}-spots.json"
    assert json.loads(path.read_text()) == result
    assert result["protocol"] == name
    assert result["settings"]["batch_statistics"] is batch_wise
    for contender in ("trained", "untrained", "pixels"):
        assert 0 <= result[contender]["top1"] <= 1
    assert {**evaluate(evaluation), "wall_s": 0} == {**result, "wall_s": 0}
    one = evaluate(QUICK(run, data, batch_statistics=batch_wise, contenders=("trained",)))
    assert one["trained"] == result["trained"]


def test_batch_statistics_reach_the_heads():
    for batch_wise in (False, True):
        config = QUICK("run", "data", batch_statistics=batch_wise).head(2)
        probe = config.build(Frozen(nn.Identity(), lambda _, images: images.flatten(2).mT), (2, 2), 4)
        assert probe.model.test_batch_statistics is batch_wise


def test_pixels_are_read_patch_by_patch(data, run, monkeypatch):
    found = {}
    monkeypatch.setattr(module, "train_heads", lambda probe, candidates, bench: found.update(candidates) or {})
    evaluate(QUICK(run, data))
    assert found["pixels"].features(torch.rand(2, 3, 8, 8)).shape == (2, 4, 48)
    assert found["pixels"].probe.heads == 2


@pytest.mark.parametrize(
    "wrong",
    [{"warmup_epochs": 90}, {"base_lr": 0.0}, {"min_lr": -1.0}, {"batch_size": 1}, {"chunk": 1}, {"heads": 0}],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=r"Attentive\."):
        Attentive("run", "data", **wrong)
