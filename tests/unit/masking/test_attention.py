from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from pantomim.config import from_dict, to_dict
from pantomim.masking.attention import PUBLISHED, AttentionMasker, published
from pantomim.masking.random import RandomMasker

GRID = (6, 8)
RULES = ("topk_masked", "topk_visible", "topk_hint", "sample_masked", "sample_visible")


def attention(batch=5, seed=0, patches=48):
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)).square() + 1e-4


def call(masker, weights, seed=0, grid=GRID):
    return masker(len(weights), grid, torch.Generator().manual_seed(seed), weights)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_the_same_number_is_masked_in_every_image(rule, ratio):
    masker = AttentionMasker(rule=rule, ratio=ratio)
    assert masker.num_masked(GRID) == RandomMasker(ratio=ratio).num_masked(GRID)
    mask = call(masker, attention())
    assert (mask.masked.sum(1) == masker.num_masked(GRID)).all()
    both = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(1).values
    assert torch.equal(both, torch.arange(48).expand(5, -1))


def test_which_way_the_top_goes():
    weights = attention()
    high, low = (
        call(AttentionMasker(rule=rule, ratio=0.5), weights).masked for rule in ("topk_masked", "topk_visible")
    )
    for row in range(5):
        assert weights[row][high[row]].min() >= weights[row][~high[row]].max()  # masked is what is attended
        assert weights[row][low[row]].max() <= weights[row][~low[row]].min()
    assert torch.equal(call(AttentionMasker(), weights * 1e-6, 1).masked, call(AttentionMasker(), weights, 2).masked)


def test_what_is_equally_attended_is_chosen_by_chance():
    flat = torch.ones(4000, 12)
    share = call(AttentionMasker(ratio=0.5), flat, grid=(3, 4)).masked.double().mean(0)
    assert (share - 0.5).abs().max() < 0.05
    weights = torch.cat([torch.full((4000, 3), 2.0), torch.ones(4000, 9)], dim=1)
    share = call(AttentionMasker(ratio=0.5), weights, grid=(3, 4)).masked.double().mean(0)
    assert (share[:3] == 1).all()
    assert (share[3:] - 1 / 3).abs().max() < 0.05


def successive(weights, count):
    """Probability of each patch to be among the first `count` drawn without replacement, by enumeration."""
    found = Counter()
    for order in permutations(range(len(weights)), count):
        left, chance = sum(weights), 1.0
        for patch in order:
            chance *= weights[patch] / left
            left -= weights[patch]
        for patch in order:
            found[patch] += chance
    return torch.tensor([found[patch] for patch in range(len(weights))], dtype=torch.float64)


@pytest.mark.parametrize("rule", ["sample_masked", "sample_visible"])
def test_sampling_is_in_proportion(rule):
    weights = [0.5, 0.1, 1.0, 3.0, 0.2, 2.0]
    number = 40_000
    mask = call(AttentionMasker(rule=rule, ratio=0.5), torch.tensor(weights).expand(number, -1), grid=(2, 3)).masked
    drawn = (mask if rule == "sample_masked" else ~mask).double().mean(0)
    assert (drawn - successive(weights, 3)).abs().max() < 5 * (0.25 / number) ** 0.5


def test_patches_without_attention_come_last_unless_all_get_some():
    weights = torch.zeros(2000, 8)
    weights[:, :3] = 1.0
    visible = ~call(AttentionMasker(rule="sample_visible", ratio=0.5), weights, grid=(2, 4)).masked
    assert visible[:, :3].all()
    assert (visible.sum(1) == 4).all()
    mixed = ~call(AttentionMasker(rule="sample_visible", ratio=0.5, eps=1.0), weights, grid=(2, 4)).masked
    assert not mixed[:, :3].all()
    assert mixed[:, :3].double().mean() > mixed[:, 3:].double().mean()


@pytest.mark.parametrize("refill", [True, False])
def test_hints_are_shown_again(refill):
    weights = attention(3000)
    weights[:] = weights[0]
    masker = AttentionMasker(rule="topk_hint", ratio=0.5, hint_show=0.1, hint_among=0.25, hint_refill=refill)
    masked = call(masker, weights).masked
    order = weights[0].argsort(descending=True)
    share = masked.double().mean(0)[order]
    assert (share[:12] - 8 / 12).abs().max() < 0.05  # four of twelve are shown
    assert (masked[:, order[:12]].sum(1) == 8).all()
    filled = 28 if refill else 24
    assert (share[12:filled] == 1).all()
    assert (share[filled:] == 0).all()
    assert masker.num_masked(GRID) == (24 if refill else 20)


def test_attention_is_needed():
    masker = AttentionMasker()
    with pytest.raises(ValueError, match=r"attention must be given, as it decides; got none\. Choose a method"):
        masker(2, GRID, torch.Generator())


def test_published_ways_have_their_numbers():
    assert published("milan") == AttentionMasker(rule="sample_visible", ratio=0.75)
    counts = {name: published(name, 0.5).num_masked((7, 7)) for name in PUBLISHED}
    assert counts == {"milan": 25, "attmask_high": 24, "attmask_low": 24, "attmask_hint": 20}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_it_stands_for(name):
    preset, written = AttentionMasker(preset=name, ratio=0.4), published(name, 0.4)
    weights = attention()
    assert preset.explicit == written
    assert preset.num_masked(GRID) == written.num_masked(GRID)
    assert torch.equal(call(preset, weights).masked, call(written, weights).masked)
    with pytest.raises(ValueError, match=f"preset decides all but the ratio; got {name}"):
        AttentionMasker(preset=name, whole="masked", rule="sample_masked")


@pytest.mark.parametrize("rule", ["sample_visible", "sample_masked"])
def test_patches_without_attention_are_chosen_by_chance(rule):
    weights = torch.zeros(4000, 48)
    weights[:, 5] = 1.0
    masked = call(AttentionMasker(rule=rule, ratio=0.5), weights).masked
    share = masked.double().mean(0)
    assert share[5] == (rule == "sample_masked")
    others = torch.cat([share[:5], share[6:]])
    expected = (23 if rule == "sample_masked" else 24) / 47
    assert (others - expected).abs().max() < 0.04
    nowhere = call(AttentionMasker(rule=rule, ratio=0.5), torch.zeros(4000, 48)).masked.double().mean(0)
    assert (nowhere - 0.5).abs().max() < 0.04


def test_what_cannot_be():
    for broken, words in (
        ({"eps": 0.1}, "goes with sample_masked"),
        ({"hint_show": 0.1}, "go with topk_hint"),
    ):
        with pytest.raises(ValueError, match=words):
            AttentionMasker(**broken)
    with pytest.raises(ValueError, match="at least one patch and fewer"):
        AttentionMasker(rule="topk_hint").num_masked((2, 2))
    with pytest.raises(ValueError, match="leaves no masked one of 4"):
        AttentionMasker(ratio=0.1, whole="masked").num_masked((2, 2))
    masker = AttentionMasker(rule="topk_hint", hint_refill=False)
    assert from_dict(AttentionMasker, to_dict(masker), "here") == masker


def test_hints_say_what_does_not_fit():
    with pytest.raises(ValueError, match=r"hint_show must be above 0 and at most hint_among"):
        AttentionMasker(rule="topk_hint", hint_show=0.3)
    tight = AttentionMasker(rule="topk_hint", ratio=0.95)
    with pytest.raises(ValueError, match=r"hint_show must leave patches to mask in the place.*hint_refill to False"):
        tight.num_masked((14, 14))
    assert replace(tight, hint_refill=False).num_masked((14, 14)) == 187 - 19
    with pytest.raises(ValueError, match=r"hint_show and hint_among must be at least one patch"):
        AttentionMasker(rule="topk_hint", ratio=0.1).num_masked((14, 14))
