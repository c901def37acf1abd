"""Golden items of dBOT notice: one thing is wrong at a time, and an item must fail."""

from dataclasses import replace

import pytest
import torch
from golden_items import failing, needs_all, outcome

from pantomim.methods import dbot as method
from pantomim.nn import blocks, decoder, vit
from pantomim.nn.tokens import normalise_tokens
from pantomim.parity import dbot
from pantomim.targets import features
from pantomim.targets.distance import Distance
from pantomim.teachers.encoder import EncoderTeacher

PRETRAIN, SYMMETRIC, WITH_CLASS, SCHEDULE = (
    "dbot_pretrain_b",
    "dbot_full_sequence_a",
    "dbot_full_sequence_b",
    "dbot_schedule",
)


@needs_all
@pytest.mark.parametrize("name", [PRETRAIN, SYMMETRIC, WITH_CLASS])
def test_as_it_is_nothing_is_wrong(name):
    assert outcome(name).status == "PASS"


@needs_all
def test_the_biased_variance(monkeypatch):
    biased = lambda tokens, **_: normalise_tokens(tokens, unbiased=False, eps=1e-6)  # noqa: E731
    monkeypatch.setattr(features, "normalise_tokens", biased)
    failing(PRETRAIN)


@needs_all
@pytest.mark.parametrize("distance", [Distance("l2"), Distance("smooth_l1", beta=1.0)])
def test_another_distance(monkeypatch, distance):
    real = method.DBOT.__init__
    monkeypatch.setattr(
        method.DBOT, "__init__", lambda self, config, *parts: real(self, replace(config, distance=distance), *parts)
    )
    failing(PRETRAIN)


@needs_all
def test_the_class_token_left_out(monkeypatch):
    forward = method.DBOT.forward

    def without(self, batch, draws):
        self.predict_class = False
        try:
            return forward(self, batch, draws)
        finally:
            self.predict_class = True

    monkeypatch.setattr(method.DBOT, "forward", without)
    failing(PRETRAIN)


@needs_all
def test_visible_patches_counted(monkeypatch):
    def everywhere(self, batch, draws):
        mask = draws.mask
        latent = self.encoder(batch.images, mask.ids_keep)
        prediction = self.decoder(latent, mask, everywhere=True, with_class=True)
        ids = torch.arange(mask.masked.shape[1]).expand(len(batch), -1)
        return {"loss": self.distance(prediction, self.target(self.teacher(batch.images), ids))}

    monkeypatch.setattr(method.DBOT, "forward", everywhere)
    failing(PRETRAIN)


@needs_all
def test_a_teacher_that_does_not_see_all_patches(monkeypatch):
    enter = vit.Encoder.enter

    def fewer(self, images, ids_keep=None, mask_tokens=None):
        seen = images if ids_keep is not None else images * (torch.arange(images.shape[-1]) >= 2)
        return enter(self, seen, ids_keep, mask_tokens)

    monkeypatch.setattr(vit.Encoder, "enter", fewer)
    failing(PRETRAIN)


@needs_all
@pytest.mark.parametrize("output", ["block", "norm"])
def test_the_teachers_norm_always_or_never(monkeypatch, output):
    monkeypatch.setattr(dbot, "EncoderTeacher", lambda frozen, name, **_: EncoderTeacher(frozen, name, output=output))
    failing(PRETRAIN)


@needs_all
@pytest.mark.parametrize("name", [PRETRAIN, SYMMETRIC, WITH_CLASS])
def test_layer_norm_eps(monkeypatch, name):
    for module in (blocks, vit, decoder):
        monkeypatch.setattr(module, "NORM_EPS", 1e-5)
    failing(name)


@needs_all
@pytest.mark.parametrize("name", [SYMMETRIC, WITH_CLASS])
def test_another_distance_of_the_symmetric_variant(monkeypatch, name):
    monkeypatch.setattr(Distance, "each", lambda self, prediction, target: (prediction - target).square().mean(dim=-1))
    failing(name)


@needs_all
def test_padding_counted_in_the_symmetric_variant(monkeypatch):
    real = Distance.__call__
    monkeypatch.setattr(
        Distance, "__call__", lambda self, prediction, target, weight=None: real(self, prediction, target)
    )
    failing(SYMMETRIC)


def test_one_cosine_over_all_stages(monkeypatch):
    whole = dbot.cosine_schedule
    monkeypatch.setattr(dbot, "cosine_schedule", lambda step, *, total, **rest: whole(step, total=2 * total, **rest))
    failing(SCHEDULE)


def test_no_warm_up(monkeypatch):
    whole = dbot.cosine_schedule
    monkeypatch.setattr(dbot, "cosine_schedule", lambda step, *, warmup, **rest: whole(step, warmup=0, **rest))
    failing(SCHEDULE)
