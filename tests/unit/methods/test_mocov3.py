"""MoCo v3's data flow: Algorithm 1 of the paper, its gradients, its teacher, and what is logged."""

import math
from dataclasses import replace

import pytest
import torch

from pantomim.core.batch import Batch
from pantomim.methods.mocov3 import MoCoV3, MoCoV3Config, feature_spread, moco_encoder
from pantomim.nn.momentum import Momentum

ENCODER = replace(moco_encoder("base"), image_size=(16, 12), patch_size=4, width=16, depth=2, heads=2)
CONFIG = MoCoV3Config(encoder=ENCODER, hidden=24, dim=6)


def build(steps: int | None = None, **changes) -> MoCoV3:
    torch.manual_seed(0)
    return replace(CONFIG, **changes).build(steps).double().train()


def views(number: int = 5) -> Batch:
    images = torch.rand(2, number, 3, 16, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images[0], total=number, second=images[1])


def drift(method: MoCoV3) -> None:
    """Something to tell teacher and student apart."""
    with torch.no_grad():
        for parameter in method.teacher_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_the_loss_is_the_formula() -> None:
    method, batch = build(), views()
    drift(method)
    temperature, outputs = 0.2, method(batch, None)
    expected, found = 0.0, 0.0
    for one, other in ((batch.images, batch.second), (batch.second, batch.images)):
        query = method.predictor_head(method.projector(method.encoder(one).prefix[:, 0]))
        key = method.teacher_projector(method.teacher_encoder(other).prefix[:, 0])
        similar = (query / query.norm(dim=1, keepdim=True)) @ (key / key.norm(dim=1, keepdim=True)).T
        odds = (similar / temperature).exp()
        expected = expected - 2 * temperature * (odds.diagonal() / odds.sum(dim=1)).log().mean()
        found += (similar.argmax(dim=1) == torch.arange(5)).double().mean() / 2
    torch.testing.assert_close(outputs["loss"], expected)
    torch.testing.assert_close(outputs["accuracy"], found)


def test_views_may_change_places() -> None:
    method, batch = build(), views()
    swapped = replace(batch, images=batch.second, second=batch.images)
    torch.testing.assert_close(method(batch, None)["loss"], method(swapped, None)["loss"])


def test_gradients_reach_the_student_and_nothing_else() -> None:
    method = build()
    drift(method)
    method(views(), None)["loss"].backward()
    for name, parameter in method.named_parameters():
        still = name.startswith("teacher_") or "patch_embed" in name or name == "encoder.pos_embed"
        assert parameter.requires_grad == (not still), name
        assert (parameter.grad is None) == still, name
        assert still or parameter.grad.any(), name


def test_the_patch_projection_learns_if_it_may() -> None:
    method = build(freeze_patches=False)
    method(views(), None)["loss"].backward()
    assert method.encoder.patch_embed.proj.weight.grad.any()
    assert not any(parameter.requires_grad for parameter in method.teacher_encoder.parameters())


def test_the_teacher_begins_as_the_student_and_follows_by_the_schedule() -> None:
    method = build(steps=10, momentum=Momentum(0.5, 1.0))
    pairs = ((method.teacher_encoder, method.encoder), (method.teacher_projector, method.projector))
    for copied, module in pairs:
        assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), module.parameters(), strict=True))
    before = [weight.clone() for weight in method.teacher_encoder.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.update_ema(3)
    share = 1 - 0.5 * (1 + math.cos(math.pi * 4 / 10)) * 0.5
    for was, now, theirs in zip(before, method.teacher_encoder.parameters(), method.encoder.parameters(), strict=True):
        kept_share = share if theirs.requires_grad else 0.0  # what is fixed in the student is copied
        torch.testing.assert_close(now, kept_share * was + (1 - kept_share) * theirs)
    kept = [weight.clone() for weight in method.teacher_encoder.parameters()]
    method.update_ema(9)  # the last: momentum 1
    assert all(torch.equal(a, b) for a, b in zip(kept, method.teacher_encoder.parameters(), strict=True))
    method.reset()
    for copied, module in pairs:
        assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), module.parameters(), strict=True))


def test_a_schedule_asks_for_the_length_of_the_run() -> None:
    with pytest.raises(ValueError, match=r"Momentum\.at must be given the length"):
        build().update_ema(0)
    build(momentum=Momentum(0.9)).update_ema(0)


def test_statistics_of_the_teachers_norms_are_its_own() -> None:
    method, batch = build(momentum=Momentum(0.0)), views()
    drift(method)
    method(batch, None)
    student, teacher = method.projector.norms[0], method.teacher_projector.copy.norms[0]
    assert student.running_mean.any()
    assert not torch.allclose(student.running_mean, teacher.running_mean)
    kept = teacher.running_mean.clone()
    method.update_ema(0)
    assert torch.equal(teacher.running_mean, kept)
    assert torch.equal(teacher.weight, student.weight)


def test_stochastic_depth_is_the_students_alone() -> None:
    method, batch = build(encoder=replace(ENCODER, drop_path=0.5)), views(16)
    assert method.training
    assert method.encoder.training
    assert method.teacher_projector.training
    torch.testing.assert_close(method.keys(batch.images), method.keys(batch.images))
    assert not torch.allclose(method.encoder(batch.images).prefix, method.encoder(batch.images).prefix)


def test_whole_batches_of_two_views_are_taken() -> None:
    takes = build().requirements
    assert (takes.views, takes.whole_batch, takes.gathers, takes.image_size) == (2, True, True, (16, 12))


def test_what_is_learned_beside_the_encoder() -> None:
    method = build()
    assert {name.split(".")[0] for name in method.exports()["predictor"]} == {"projector", "predictor_head"}
    assert method.exports()["encoder"] is method.encoder


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"encoder": replace(ENCODER, class_token=False)}, "class_token must be there"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **wrong)


def test_a_collapse_is_seen() -> None:
    torch.manual_seed(0)
    alike = torch.randn(1, 64).expand(50, 64)
    assert feature_spread(alike).item() == pytest.approx(0.0, abs=1e-6)
    assert feature_spread(torch.randn(4000, 64)).item() == pytest.approx(1.0, abs=0.02)
    method, batch = build(), views()
    same = batch.images[:1].expand(5, -1, -1, -1)
    assert method(replace(batch, images=same, second=same), None)["feature_std"] < 1e-6
    assert method(batch, None)["feature_std"] > 0.1


def test_initial_weights_are_the_authors() -> None:
    torch.manual_seed(0)
    encoder = replace(moco_encoder("small"), depth=1).build()
    width = encoder.width
    for name, bound in (("attn.qkv", 6 / (2 * width)), ("attn.proj", 6 / (2 * width)), ("mlp.fc1", 6 / (5 * width))):
        layer = encoder.blocks[0].get_submodule(name)
        assert layer.weight.abs().max().item() == pytest.approx(bound**0.5, rel=1e-3)
        assert not layer.bias.any()
    kernel = encoder.patch_embed.proj
    assert kernel.weight.abs().max().item() == pytest.approx((6 / (3 * 16 * 16 + width)) ** 0.5, rel=1e-3)
    assert not kernel.bias.any()
    assert encoder.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)
    assert encoder.config.heads == 12
