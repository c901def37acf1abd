"""Probes on augmented images: who is trained on what, what is reported, and how an interrupted one is resumed."""

import os
import re
import signal
from functools import partial

import numpy as np
import pytest
import torch
from probing import scores_of

from pantomim.engine.stops import Interrupted, MemoryFullError, NonFiniteError
from pantomim.evaluate import base, evaluate
from pantomim.evaluate.attentive import Attentive
from pantomim.evaluate.linear_mae import LinearMAE
from pantomim.formats.native import load_predictor, save_encoder
from pantomim.formats.timm import load_timm
from pantomim.methods.probe import Probe, ProbeConfig
from pantomim.nn.vit import EncoderConfig

NUM_IMAGES = 90


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(1)
    config = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2)
    save_encoder(tmp_path / "run", config.build(), scale={"divisor": 255.0}, recipe="mae_test")
    return str(tmp_path / "run")


def write(path, split=None, seed=0):
    """Three classes of noise, named 3, 5 and 9; the mean colour of an image tells its number."""
    rng = np.random.default_rng(seed)
    labels = np.array([3, 5, 9])[np.arange(NUM_IMAGES) % 3]
    images = np.repeat(2 * np.arange(NUM_IMAGES, dtype=np.uint8)[:, None, None, None], 3, axis=1)
    images = images.repeat(8, axis=2).repeat(8, axis=3) + rng.integers(0, 2, (NUM_IMAGES, 3, 8, 8), dtype=np.uint8)
    given = {} if split is None else {"split": split}
    np.savez(path, images=images, labels=labels, **given)
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "noise.npz")


LINEAR, ATTENTIVE = partial(LinearMAE, epochs=4, warmup_epochs=1), partial(Attentive, epochs=4, warmup_epochs=1)
either = pytest.mark.parametrize("kind", [LINEAR, ATTENTIVE], ids=["linear", "attentive"])


def seen_by(monkeypatch) -> dict[str, set[int]]:
    """The numbers of the images that are trained and judged on from now on."""
    seen: dict[str, set[int]] = {"train": set(), "judge": set()}
    logits = Probe.logits

    def remember(self, model, images):
        numbers = (images.mean(dim=(1, 2, 3)) * 255 / 2).round().int().tolist()
        seen["train" if model.training else "judge"].update(numbers)
        return logits(self, model, images)

    monkeypatch.setattr(Probe, "logits", remember)
    return seen


@either
@pytest.mark.parametrize("hold_out", [True, False])
def test_held_out_images_are_not_trained_on_and_their_score_is_told(kind, run, data, monkeypatch, hold_out):
    seen = seen_by(monkeypatch)
    evaluation = kind(run, data, contenders=("trained",), hold_out=hold_out)
    result = evaluate(evaluation)
    scores = result["trained"]
    assert set(scores) == {"top1", "top1_per_class"} | ({"validation"} if hold_out else set())
    assert not seen["train"] & seen["judge"]
    assert len(seen["train"]) == (57 if hold_out else 72)
    assert len(seen["judge"]) == (33 if hold_out else 18)
    assert ("held-out images" in evaluation.headline(result)) is hold_out
    assert result["data"]["num_val"] == ("a fifth of train" if hold_out else 0)
    if hold_out:
        assert 0 <= scores["validation"]["top1"] <= 1


@either
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_networks_of_other_libraries_are_probed(kind, name, data, monkeypatch):
    monkeypatch.setattr(base, "load_encoder", lambda source: load_timm(name, pretrained=False))
    size = (32, 32) if name == "test_resnet" else None
    options = {"epochs": 2, "image_size": size, "heads": 2} if kind is ATTENTIVE else {"epochs": 2, "image_size": size}
    result = evaluate(kind("timm:x", data, contenders=("trained", "untrained"), **options))
    assert result["trained"].keys() == result["untrained"].keys() == {"top1", "top1_per_class", "validation"}


@either
@pytest.mark.parametrize("hold_out", [True, False])
def test_a_split_val_beside_a_test_split_is_what_is_chosen_by(kind, run, tmp_path, monkeypatch, hold_out):
    split = np.array(["train"] * 48 + ["val"] * 21 + ["test"] * 21)
    data = write(tmp_path / "three.npz", split)
    seen = seen_by(monkeypatch)
    result = evaluate(kind(run, data, contenders=("trained",), hold_out=hold_out))
    assert seen["train"] <= set(range(48))
    assert seen["judge"] == set(range(48, 90))
    assert set(result["trained"]["validation"]) == {"top1", "top1_per_class"}


class Stopped:
    """Stops a training, as the user does, in its step number `step`, once."""

    def __init__(self, monkeypatch, step):
        self.step, self.steps, self.forward = step, 0, Probe.forward
        monkeypatch.setattr(Probe, "forward", lambda probe, batch, draws=None: self(probe, batch))

    def __call__(self, probe, batch):
        self.steps += 1
        if self.steps == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.forward(probe, batch)


@either
@pytest.mark.parametrize("step", [2, 6])  # in the first contender, in the second
def test_an_interrupted_probe_resumes_to_the_same_bits(kind, run, data, tmp_path, monkeypatch, step):
    evaluation, straight, stopped = kind(run, data), tmp_path / "straight", tmp_path / "stopped"
    whole = evaluate(evaluation, work=straight)
    stop = Stopped(monkeypatch, step)
    with pytest.raises(Interrupted, match=r"Stopped after step 2 of 4.*Run the same command to resume"):
        evaluate(evaluation, work=stopped)
    resumed = evaluate(evaluation, work=stopped)
    assert stop.steps == 12, "no step is done twice"
    assert {**resumed, "wall_s": 0} == {**whole, "wall_s": 0}
    for folder in straight.iterdir():
        ours, theirs = load_predictor(stopped / folder.name), load_predictor(folder)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def test_an_evaluation_works_beside_its_result_until_that_is_written(run, data, tmp_path, monkeypatch):
    folder, forward = tmp_path / "run" / "eval", Probe.forward
    with monkeypatch.context() as patch:
        Stopped(patch, 2)
        with pytest.raises(Interrupted):
            LINEAR(run, data).to_file()
        (work,) = folder.iterdir()
        assert work.name.startswith("linear-mae-")
        assert work.suffix == ".partial"
    steps = []
    monkeypatch.setattr(Probe, "forward", lambda *given: (steps.append(1), forward(*given))[1])
    LINEAR(run, data, base_lr=1.0, contenders=("trained",)).to_file()  # other settings are another evaluation
    assert len(steps) == 4
    assert {path.name for path in folder.iterdir()} == {work.name, "linear-mae-noise.json"}
    LINEAR(run, data).to_file()
    assert len(steps) == 4 + 10
    other, first = sorted(path.name for path in folder.iterdir())
    assert first == "linear-mae-noise.json"
    assert re.fullmatch(r"linear-mae-noise-[0-9a-f]{8}\.json", other)
    LINEAR(run, data, out=tmp_path / "other" / "scores.json").to_file()
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["scores.json"]


def test_another_encoder_of_the_same_name_is_trained_anew(run, data, tmp_path):
    evaluation, work = LINEAR(run, data, contenders=("trained",)), tmp_path / "work"
    evaluate(evaluation, work=work)
    torch.manual_seed(2)
    config = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2)
    save_encoder(run, config.build(), scale={"divisor": 255.0}, recipe="mae_test")
    evaluate(evaluation, work=work)
    assert len(list(work.iterdir())) == 2


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_a_loss_that_is_not_finite_names_what_to_lower(data, tmp_path, head):
    kind, shape = {"linear": (LINEAR, (1, 12)), "attentive": (ATTENTIVE, (1, 4, 3))}[head]
    readers = {"x": lambda images: torch.full(shape, torch.nan).expand(len(images), *shape[1:])}
    with pytest.raises(NonFiniteError, match=r"\.base_lr must keep the loss finite; got .* Give a lower rate"):
        scores_of(readers, kind("run", data), ProbeConfig(head=head, heads=1), tmp_path)


def test_a_step_that_does_not_fit_names_what_to_lower(run, data, monkeypatch):
    def full(*given):
        raise MemoryError

    monkeypatch.setattr(Probe, "forward", full)
    with pytest.raises(MemoryFullError, match=r"LinearMAE\.chunk must let a step fit in memory; got 256 for"):
        evaluate(LINEAR(run, data))


def test_nobody_elses_draws_change(run, data):
    state = torch.random.get_rng_state()
    evaluate(ATTENTIVE(run, data))
    assert torch.equal(torch.random.get_rng_state(), state)
