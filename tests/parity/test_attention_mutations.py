"""The items about attention-guided masks notice: one thing is wrong at a time, and an item must fail."""

import pytest
import torch
from golden_items import failing, mutations, outcome

from pantomim.masking import attention
from pantomim.methods import milan as method
from pantomim.nn import decoder
from pantomim.parity import milan
from pantomim.targets.distance import Distance

PRETRAIN = "milan_pretrain_a"
draw_order, distance, mix = attention.draw_order, method.DISTANCE, decoder.PromptedAttention.forward


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(milan, "DRAWS", 2000)


@pytest.mark.parametrize("name", ["attmask", "milan_sampling", PRETRAIN])
def test_as_they_are(name):
    assert outcome(name).status == "PASS"


@pytest.mark.parametrize(
    ("item", "preset", "wrong"),
    [
        ("milan_sampling", "milan", {"rule": "sample_masked"}),
        ("attmask", "attmask_high", attention.PUBLISHED["attmask_low"]),
        ("attmask", "attmask_high", {"rule": "topk_masked", "whole": "visible"}),
        ("attmask", "attmask_hint", attention.PUBLISHED["attmask_hint"] | {"hint_refill": True}),
    ],
    ids=["shown where masked", "high and low exchanged", "counted as in MAE", "hints refilled"],
)
def test_another_preset(monkeypatch, item, preset, wrong):
    monkeypatch.setitem(attention.PUBLISHED, preset, wrong)
    assert failing(item).compared > 4


def most_attended(scores, shown, among, generator):
    return scores.scatter(1, scores.topk(shown, dim=1).indices, -1.0)


def without_tokens(tokens):
    class Part(Distance):
        def __call__(self, ours, target, weight=None):
            return distance(ours[:, tokens], target[:, tokens])

    return Part(distance.form, distance.beta)


def all_normed(self, masked, prompt):
    normed = self.norm1(masked)
    masked = masked + self.attn(normed, torch.cat([self.norm1(prompt), normed], dim=1))
    return masked + self.mlp(self.norm2(masked))


def prompt_alone(self, masked, prompt):
    masked = masked + self.attn(self.norm1(masked), prompt)
    return masked + self.mlp(self.norm2(masked))


def exchanged(self, queries, tokens):
    twin = torch.nn.Linear(self.kv.in_features, self.kv.out_features).to(tokens)
    halves = [torch.cat(weight.chunk(2)[::-1]) for weight in (self.kv.weight, self.kv.bias)]
    twin.weight, twin.bias = (torch.nn.Parameter(half) for half in halves)
    kept, self.kv = self.kv, twin
    mixed = mix(self, queries, tokens)
    self.kv = kept
    return mixed


@mutations(
    logarithm=(
        "milan_sampling",
        attention,
        "draw_order",
        lambda w, eps, generator: draw_order(w.exp(), eps, generator),
    ),
    something_added=(
        "milan_sampling",
        attention,
        "draw_order",
        lambda w, eps, generator: draw_order(w, 0.5, generator),
    ),
    hints_most_attended=("attmask", attention, "_with_hint", most_attended),
    cosine=(PRETRAIN, method, "DISTANCE", Distance("cosine")),
    squares=(PRETRAIN, method, "DISTANCE", Distance("l2")),
    no_class_token=(PRETRAIN, method, "DISTANCE", without_tokens(slice(1, None))),
    not_the_last_patch=(PRETRAIN, method, "DISTANCE", without_tokens(slice(0, -1))),
    visible_tokens_normed=(PRETRAIN, decoder.PromptedBlock, "forward", all_normed),
    masked_tokens_apart=(PRETRAIN, decoder.PromptedBlock, "forward", prompt_alone),
    keys_and_values_exchanged=(PRETRAIN, decoder.PromptedAttention, "forward", exchanged),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    assert failing(item).compared > 4
