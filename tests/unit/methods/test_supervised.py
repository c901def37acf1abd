"""The supervised baseline: mixed images, soft targets, and nothing that depends on how a batch is shared out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ENCODER
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.masking.block import host_seed
from pantomim.methods.supervised import Supervised, SupervisedConfig, SupervisedDraws
from pantomim.nn.mixing import Mixing, draw_mixing, mix_images, mix_targets

CONFIG = SupervisedConfig(encoder=ENCODER, num_classes=4)


def build(**changes) -> Supervised:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build()


def batch_of(size=8, start=0, total=None) -> Batch:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(16, 3, 16, 16, generator=generator)[start : start + size]
    labels = torch.randint(4, (16,), generator=generator)[start : start + size]
    return Batch(images, None, labels, start, total or size)


def draws_of(method, batch, step=0) -> SupervisedDraws:
    return method.draw(batch, step, torch.Generator().manual_seed(1000 + step))


def test_the_loss_is_the_cross_entropy_with_what_was_mixed() -> None:
    method, batch = build(), batch_of()
    draws = draws_of(method, batch)
    outputs = method(batch, draws)
    logits = method.model.head(method.encoder(draws.images).prefix[:, 0])
    expected = -(draws.targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(outputs["loss"], expected)
    assert 0 <= outputs["accuracy"] <= 1


def test_without_mixing_it_is_label_smoothing() -> None:
    method, batch = (
        build(mixup=0.0, cutmix=0.0, pool="normed_mean"),
        batch_of(7),
    )  # an odd number is fine without partners
    draws = draws_of(method, batch)
    assert torch.equal(draws.images, batch.images)
    logits = method.model.head(method.encoder(batch.images).patches.mean(dim=1))
    outputs = method(batch, draws)
    torch.testing.assert_close(outputs["loss"], F.cross_entropy(logits, batch.labels, label_smoothing=0.1))
    assert outputs["accuracy"] == (logits.argmax(dim=1) == batch.labels).float().mean()


def test_images_and_targets_are_mixed_alike_with_the_neighbour() -> None:
    method, batch = build(), batch_of()
    kinds = set()
    for step in range(12):
        draws = draws_of(method, batch, step)
        mixing = draw_mixing(np.random.default_rng(host_seed(torch.Generator().manual_seed(1000 + step))), (16, 16))
        pairs = [1, 0, 3, 2, 5, 4, 7, 6]
        assert torch.equal(draws.images, mix_images(batch.images, mixing, batch.images[pairs]))
        expected = mix_targets(batch.labels, 4, mixing.lam, 0.1, partners=batch.labels[pairs])
        assert torch.equal(draws.targets, expected)
        torch.testing.assert_close(draws.targets.sum(dim=1), torch.ones(8))
        kinds.add(mixing.box is None)
    assert kinds == {True, False}


def test_draws_are_those_of_the_step_however_the_batch_is_shared() -> None:
    method = build()
    whole = draws_of(method, batch_of(16))
    parts = [draws_of(method, batch_of(4, start, 16)) for start in (0, 4, 8, 12)]
    for name in ("images", "targets"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert not torch.equal(whole.images, draws_of(method, batch_of(16), step=1).images)


def test_drawing_again_from_the_same_generator_draws_anew() -> None:
    method, batch, generator = build(), batch_of(), torch.Generator().manual_seed(3)
    first, second = (method.draw(batch, 0, generator) for _ in range(2))
    assert not torch.equal(first.images, second.images)


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match=r"even number of rows.*got 7"):
        draws_of(build(), batch_of(7))


def test_gradients_reach_every_weight() -> None:
    for pool in ("class", "mean", "normed_mean"):
        method, batch = build(pool=pool), batch_of()
        method(batch, draws_of(method, batch))["loss"].backward()
        named = {name: weight for name, weight in method.named_parameters() if weight.requires_grad}
        assert {"model.head.weight", "model.head.bias"} <= set(named)
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in named.values()), pool


def test_accuracy_counts_the_larger_share() -> None:
    method, batch = build(mixup=0.0, cutmix=0.0), batch_of()
    guess = method.model(batch.images).argmax(dim=1)
    other = (guess + 1) % 4
    share = torch.where(torch.arange(8) < 6, 0.8, 0.3)
    targets = share[:, None] * F.one_hot(guess, 4) + (1 - share[:, None]) * F.one_hot(other, 4)
    assert method(batch, SupervisedDraws(batch.images, targets))["accuracy"] == 0.75


def test_it_says_which_images_and_labels_it_takes_and_what_it_leaves() -> None:
    method = build()
    takes = method.requirements
    assert (takes.num_classes, takes.views, takes.in_chans, takes.image_size) == (4, 1, 3, (16, 16))
    parts = method.exports()
    assert parts["classifier"] is method.model
    assert parts["about"]["chosen"] == {"weights": "last"}
    for name, weight in parts["encoder"].state_dict().items():
        assert torch.equal(weight, method.encoder.state_dict()[name]), name


def test_float64_stays_float64() -> None:
    method, batch = build().double(), batch_of()
    draws = draws_of(method, replace(batch, images=batch.images.double()))
    assert method(batch, replace(draws, targets=draws.targets.double()))["loss"].dtype == torch.float64
    assert Mixing(0.5).lam == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2; got 1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"mixup": -0.1}, "mixup must be at least 0"),
        ({"encoder": replace(ENCODER, class_token=False)}, "pool must be mean for an encoder without a class token"),
    ],
)
def test_values_out_of_range_are_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)


def test_it_learns_the_classes_of_a_handful_of_images() -> None:
    method, batch = build(mixup=0.0, cutmix=0.0, label_smoothing=0.0), batch_of()
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(60):
        outputs = method(batch, draws_of(method, batch, step))
        outputs["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert outputs["accuracy"] == 1.0
    assert outputs["loss"] < 0.2


def test_class_weights_weigh_images_not_what_smoothing_spreads() -> None:
    """Else a sure image of a frequent class would be taught the rare one."""
    method = build(mixup=0.0, cutmix=0.0, num_classes=2, class_weights=(0.52, 10.0))
    images, labels = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    batch = Batch(images, None, labels, 0, 4)
    draws = draws_of(method, batch)
    loss = method(batch, draws)["loss"]
    expected = 0.52 * F.cross_entropy(method.model(images), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    assert method.metric == "top1_per_class"
    assert build().metric == "top1"


def test_weights_of_mixed_images_are_mixed() -> None:
    method, batch = build(class_weights=(1.0, 2.0, 3.0, 4.0)), batch_of()
    draws = draws_of(method, batch)
    lam = draw_mixing(np.random.default_rng(host_seed(torch.Generator().manual_seed(1000))), (16, 16)).lam
    weights, partners = torch.arange(1.0, 5.0)[batch.labels], [1, 0, 3, 2, 5, 4, 7, 6]
    torch.testing.assert_close(draws.weights, lam * weights + (1 - lam) * weights[partners])
