"""A probe: the head learns, the encoder never; over which images it normalises."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from tiny import CAE_ENCODER, ENCODER, tiny_run

from pantomim.checkpoint import Progress, find_checkpoint, save_checkpoint
from pantomim.config import Duration
from pantomim.core.batch import Batch
from pantomim.engine.setup import check_fit
from pantomim.engine.training import Training
from pantomim.evaluate.attentive import all_tokens
from pantomim.formats.files import frozen_hashes, hash_weights
from pantomim.methods.probe import Frozen, Probe, ProbeConfig
from pantomim.nn.heads import LinearHead

either_head = pytest.mark.parametrize("head", ["linear", "attentive"])


def class_token(encoder, images):
    return encoder(images).prefix[:, 0]


def build(head="linear", **changes) -> Probe:
    torch.manual_seed(0)
    encoder = (ENCODER if head == "linear" else CAE_ENCODER).build()
    features = Frozen(encoder, class_token if head == "linear" else all_tokens)
    return ProbeConfig(head=head, num_classes=4, heads=2, **changes).build(features, (16, 16))


def batch_of(size=8, start=0, total=None) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(16, 3, 16, 16, generator=generator)[start : start + size]
    return Batch(images, None, torch.arange(16)[start : start + size] % 4, start, total or size)


def train(method, steps, **settings) -> Training:
    """The usual optimisers, on the same 8 images in every step."""
    usual = {"linear": {"optimiser": "lars"}, "attentive": {"optimiser": "sgd"}}[method.config.head]
    optim = {"warmup": Duration(steps=0), "weight_decay": 0.0} | usual | settings
    config = tiny_run("images.npz", batch_size=8, steps=steps, optim=optim, runtime={"precision": "float32"})
    training = Training(config, method, steps, 0, Accelerator(cpu=True))
    for step in range(steps):
        training.step(step, [batch_of()])
    return training


@either_head
def test_the_head_overfits_eight_images(head) -> None:
    method, batch = build(head), batch_of()
    first = method(batch)["loss"].item()
    train(method, 300, base_lr={"linear": 300.0, "attentive": 3.0}[head])
    outputs = method(batch)
    assert outputs["loss"] < 0.1 * first
    assert outputs["accuracy"] == 1


@either_head
def test_the_head_alone_is_trained_and_kept(head, tmp_path) -> None:
    method = build(head)
    before = hash_weights(method.features.state_dict())
    training = train(method, 3, base_lr=0.1)
    assert not method.features.network.training
    assert method.model.training
    assert hash_weights(method.features.state_dict()) == before
    names = {name for group in training.optimizer.param_groups for name in group["param_names"]}
    assert names == {f"model.{name}" for name, _ in method.model.named_parameters()}
    assert method.exports()["predictor"].keys() == method.model.state_dict().keys()
    save_checkpoint(tmp_path, method, training.optimizer, step=3, seed=0, progress=Progress(), keep=1)
    assert find_checkpoint(tmp_path).frozen == frozen_hashes(method) == {"features": frozen_hashes(method)["features"]}


def test_the_encoder_sees_chunks_and_the_linear_head_the_whole_batch() -> None:
    seen, whole = [], build()
    method = build(chunk=3)
    read = method.features.read
    method.features.read = lambda encoder, images: (seen.append(len(images)), read(encoder, images))[1]
    torch.testing.assert_close(method(batch_of())["loss"], whole(batch_of())["loss"])
    assert seen == [3, 3, 2]
    torch.testing.assert_close(method.model.norm.running_var, whole.model.norm.running_var)
    assert method.requirements.whole_batch
    assert not build("attentive").requirements.whole_batch


def test_a_linear_head_that_would_normalise_over_parts_is_refused(tmp_path) -> None:
    config = tiny_run(tmp_path, batch_size=8, runtime={"accumulation": 2})
    dataset = type("Dataset", (), {"channels": 3, "facts": type("Facts", (), {"size": (4, 4), "dtype": "uint8"})})()
    with pytest.raises(ValueError, match=r"RuntimeConfig\.accumulation must be 1"):
        check_fit(config, dataset, build().requirements, 1)
    check_fit(config, dataset, build("attentive").requirements, 1)  # of images smaller than a patch, too


def test_smoothing_is_that_of_the_loss_alone() -> None:
    batch, smoothed = batch_of(), build(label_smoothing=0.2)
    logits = smoothed.logits(smoothed.model, batch.images).log_softmax(dim=1)
    expected = -0.8 * logits.gather(1, batch.labels[:, None]).mean() - 0.2 * logits.mean()
    torch.testing.assert_close(smoothed(batch)["loss"], expected)
    scores = smoothed.judge(smoothed.model, [batch])
    logits = smoothed.logits(smoothed.model.eval(), batch.images).double()
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.labels).item())
    assert scores["top1"] == (logits.argmax(dim=1) == batch.labels).double().mean()


@either_head
def test_it_is_judged_by_running_statistics(head) -> None:
    method = build(head)
    train(method, 5, base_lr=0.1)
    whole, parts = batch_of(), [batch_of(2, start, 8) for start in range(0, 8, 2)]
    assert method.judge(method.model, [whole]) == pytest.approx(method.judge(method.model, parts))
    assert method.model.training, "as it was"


def test_the_linear_head_normalises_without_weights_and_keeps_running_statistics() -> None:
    torch.manual_seed(0)
    head = LinearHead(1000, 10)
    assert [name for name, _ in head.named_parameters()] == ["head.weight", "head.bias"]
    assert head.norm.eps == 1e-6
    assert head.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.head.bias.any()
    features = 3 + 2 * torch.randn(50, 1000)
    head.train()(features)
    torch.testing.assert_close(head.norm.running_mean, 0.1 * features.mean(dim=0))


def test_settings_are_checked() -> None:
    for wrong in ({"num_classes": 1}, {"label_smoothing": 1.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match=rf"ProbeConfig\.{next(iter(wrong))} must"):
            replace(ProbeConfig(), **wrong)
