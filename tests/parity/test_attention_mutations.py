"""The items about attention-guided masks notice: one thing is wrong at a time, and an item must fail."""

from dataclasses import replace

import pytest
import torch
from golden_items import failing, needs_all, outcome

from pantomim.masking import attention
from pantomim.methods import milan as method
from pantomim.nn import decoder
from pantomim.parity import milan
from pantomim.targets.distance import Distance


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(milan, "DRAWS", 5000)


def broken(name):
    result = failing(name)
    assert result.compared > 4, result
    return result


def test_as_they_are():
    for name in ("attmask", "milan_sampling"):
        assert outcome(name).status == "PASS"


def test_attended_patches_masked_where_milan_shows_them(monkeypatch):
    monkeypatch.setitem(attention.PUBLISHED, "milan", {"rule": "sample_masked"})
    broken("milan_sampling")


def test_attention_as_a_logarithm(monkeypatch):
    right = attention.draw_order
    monkeypatch.setattr(attention, "draw_order", lambda weights, eps, generator: right(weights.exp(), eps, generator))
    broken("milan_sampling")


def test_something_added_to_the_attention(monkeypatch):
    right = attention.draw_order
    monkeypatch.setattr(attention, "draw_order", lambda weights, eps, generator: right(weights, 0.5, generator))
    broken("milan_sampling")


def test_high_and_low_exchanged(monkeypatch):
    monkeypatch.setitem(attention.PUBLISHED, "attmask_high", attention.PUBLISHED["attmask_low"])
    assert broken("attmask").off == 2


def test_counted_as_in_mae(monkeypatch):
    monkeypatch.setitem(attention.PUBLISHED, "attmask_high", {"rule": "topk_masked", "whole": "visible"})
    assert broken("attmask").off >= 1


def test_hints_refilled(monkeypatch):
    right = milan._hint
    monkeypatch.setattr(milan, "_hint", lambda *given: replace(right(*given), hint_refill=True))
    broken("attmask")


def test_hints_that_are_always_the_most_attended(monkeypatch):
    monkeypatch.setattr(
        attention,
        "_with_hint",
        lambda scores, shown, among, generator: scores.scatter(1, scores.topk(shown, dim=1).indices, -1.0),
    )
    broken("attmask")


@needs_all
def test_milan_as_it_is():
    assert outcome("milan_pretrain_a").status == "PASS"


@needs_all
@pytest.mark.parametrize("form", ["cosine", "l2"])
def test_another_distance(monkeypatch, form):
    monkeypatch.setattr(method, "DISTANCE", Distance(form))
    broken("milan_pretrain_a")


@needs_all
@pytest.mark.parametrize("tokens", [slice(1, None), slice(0, -1)], ids=["no class token", "not the last patch"])
def test_not_all_tokens(monkeypatch, tokens):
    right = method.DISTANCE
    monkeypatch.setattr(method, "DISTANCE", lambda ours, target: right(ours[:, tokens], target[:, tokens]))
    broken("milan_pretrain_a")


@needs_all
def test_visible_tokens_are_normed_too(monkeypatch):
    def forward(self, hidden, prompt):
        normed = self.norm1(hidden)
        hidden = hidden + self.attn(normed, torch.cat([self.norm1(prompt), normed], dim=1))
        return hidden + self.mlp(self.norm2(hidden))

    monkeypatch.setattr(decoder.PromptedBlock, "forward", forward)
    broken("milan_pretrain_a")


@needs_all
def test_hidden_tokens_do_not_see_each_other(monkeypatch):
    def forward(self, hidden, prompt):
        hidden = hidden + self.attn(self.norm1(hidden), prompt)
        return hidden + self.mlp(self.norm2(hidden))

    monkeypatch.setattr(decoder.PromptedBlock, "forward", forward)
    broken("milan_pretrain_a")


@needs_all
def test_keys_and_values_exchanged(monkeypatch):
    right = decoder.PromptedAttention.forward

    def forward(self, queries, tokens):
        twin = torch.nn.Linear(self.kv.in_features, self.kv.out_features).to(tokens)
        halves = [torch.cat(weight.chunk(2)[::-1]) for weight in (self.kv.weight, self.kv.bias)]
        twin.weight, twin.bias = (torch.nn.Parameter(half) for half in halves)
        kept, self.kv = self.kv, twin
        mixed = right(self, queries, tokens)
        self.kv = kept
        return mixed

    monkeypatch.setattr(decoder.PromptedAttention, "forward", forward)
    broken("milan_pretrain_a")
