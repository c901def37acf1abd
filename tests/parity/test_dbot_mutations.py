"""Golden items of dBOT notice: one thing is wrong at a time, and an item must fail."""

from dataclasses import replace

import pytest
import torch
from golden_items import failing, mutations, other_norm_eps, outcome
from torch.nn import functional as F

from pantomim.methods.dbot import DBOT
from pantomim.nn import vit
from pantomim.nn.tokens import normalise_tokens
from pantomim.parity import dbot
from pantomim.targets import features
from pantomim.targets.distance import Distance
from pantomim.teachers.encoder import EncoderTeacher

PRETRAIN, SYMMETRIC, WITH_CLASS = "dbot_pretrain_b", "dbot_full_sequence_a", "dbot_full_sequence_b"
SCHEDULE, ANALYSIS = "dbot_schedule", "dbot_analysis"
build, forward, enter, distance_of = DBOT.__init__, DBOT.forward, vit.Encoder.enter, Distance.__call__
cosine, concentration, blocks_of = dbot.Schedule.mae, dbot.concentration, dbot.block_features
attention_distance, patch_distances = dbot.attention_distance, dbot.patch_distances


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch):
    """Initial weights take most of the time, and the whole item compares them."""
    monkeypatch.setattr(dbot, "initialisation", lambda *_: {})


@pytest.mark.parametrize("name", [PRETRAIN, SYMMETRIC, WITH_CLASS, SCHEDULE, ANALYSIS])
def test_as_it_is_nothing_is_wrong(name):
    result = outcome(name)
    assert result.status == "PASS"
    assert result.error < 0.1


def with_distance(**settings):
    distance = Distance(**settings)
    return lambda self, config, *parts: build(self, replace(config, distance=distance), *parts)


def without_class_token(self, batch, draws):
    self.predict_class = False
    try:
        return forward(self, batch, draws)
    finally:
        self.predict_class = True


def everywhere(self, batch, draws):
    mask = draws.mask
    latent = self.encoder(batch.images, mask.ids_keep)
    prediction = self.decoder(latent, mask, everywhere=True, with_class=True)
    ids = torch.arange(mask.masked.shape[1]).expand(len(batch), -1)
    return {"loss": self.distance(prediction, self.target(self.teacher(batch.images), ids))}


def fewer_patches(self, images, ids_keep=None, mask_tokens=None):
    seen = images if ids_keep is not None else images * (torch.arange(images.shape[-1]) >= 2)
    return enter(self, seen, ids_keep, mask_tokens)


def teacher(output):
    return lambda frozen, name, **_: EncoderTeacher(frozen, name, output=output)


def mean_square(self, prediction, target):
    return (prediction - target).square().mean(dim=-1)


def renormalised(attention, distances, num_prefix):
    kept = attention[..., num_prefix:, num_prefix:]
    return attention_distance(kept / kept.sum(dim=-1, keepdim=True), distances, 0)


def shares(values):
    return (values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True))[:, :5]


def centred(tokens):
    return concentration(F.normalize(tokens, dim=-1) - tokens.mean(dim=1, keepdim=True))


def normed(encoder, images, need_attention):
    for block in blocks_of(encoder, images, need_attention):
        yield block._replace(patches=encoder.norm(block.patches))


@mutations(
    biased_variance=(
        PRETRAIN,
        features,
        "normalise_tokens",
        lambda t, **_: normalise_tokens(t, unbiased=False, eps=1e-6),
    ),
    squares=(PRETRAIN, DBOT, "__init__", with_distance(form="l2")),
    beta=(PRETRAIN, DBOT, "__init__", with_distance(form="smooth_l1", beta=1.0)),
    no_class_token=(PRETRAIN, DBOT, "forward", without_class_token),
    visible_patches=(PRETRAIN, DBOT, "forward", everywhere),
    fewer_patches_for_the_teacher=(PRETRAIN, vit.Encoder, "enter", fewer_patches),
    never_normed=(PRETRAIN, dbot, "EncoderTeacher", teacher("block")),
    always_normed=(PRETRAIN, dbot, "EncoderTeacher", teacher("norm")),
    symmetric_squares=(SYMMETRIC, Distance, "each", mean_square),
    symmetric_squares_with_class=(WITH_CLASS, Distance, "each", mean_square),
    padding=(SYMMETRIC, Distance, "__call__", lambda self, ours, target, weight=None: distance_of(self, ours, target)),
    one_cosine=(
        SCHEDULE,
        dbot.Schedule,
        "mae",
        lambda self, step: cosine(replace(self, total=2 * self.total), step),
    ),
    no_warmup=(SCHEDULE, dbot.Schedule, "mae", lambda self, step: cosine(replace(self, warmup=0), step)),
    rows_that_sum_to_one=(ANALYSIS, dbot, "attention_distance", renormalised),
    distances_in_patches=(ANALYSIS, dbot, "patch_distances", lambda grid, patch: patch_distances(grid, (1, 1))),
    squared_values=(
        ANALYSIS,
        dbot,
        "concentration",
        lambda tokens: shares(torch.linalg.svdvals(F.normalize(tokens, dim=-1)).square()),
    ),
    tokens_of_any_length=(ANALYSIS, dbot, "concentration", lambda tokens: shares(torch.linalg.svdvals(tokens))),
    centred=(ANALYSIS, dbot, "concentration", centred),
    last_norm=(ANALYSIS, dbot, "block_features", normed),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


@pytest.mark.parametrize("name", [PRETRAIN, SYMMETRIC, WITH_CLASS, ANALYSIS])
def test_layer_norm_eps(monkeypatch, name):
    other_norm_eps(monkeypatch)
    assert failing(name).off >= 3
