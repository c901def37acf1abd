"""What holds for every masker of the one list."""

import math

import pytest
import torch

from pantomim.config import from_dict, to_dict
from pantomim.masking import MASKERS, STRATEGIES, Masker, strategy_of
from pantomim.masking.noise import Noise

GRID = (14, 14)


def draw(masker: Masker, seed: int):
    attention = torch.rand(8, 196, generator=torch.Generator().manual_seed(9)) if masker.guided else None
    return masker(8, GRID, torch.Generator().manual_seed(seed), attention)


@pytest.mark.parametrize("kind", MASKERS)
def test_it_is_a_masker_and_its_own_config(kind) -> None:
    masker = kind()
    assert isinstance(masker, Masker)
    assert from_dict(kind, to_dict(masker), "config.yaml") == masker
    assert masker.manner


@pytest.mark.parametrize("kind", [kind for kind in MASKERS if hasattr(kind, "ratio")])
@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 75.0, math.nan])
def test_a_ratio_is_a_share(kind, ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.ratio must be in \(0, 1\); got "):
        kind(ratio=ratio)


@pytest.mark.parametrize("kind", MASKERS)
def test_every_patch_is_masked_or_visible_and_the_generator_alone_decides(kind) -> None:
    settings = {"AttentionMasker": {"rule": "sample_masked"}, "ColorNoiseMasker": {"noise": Noise(patterns=4, side=24)}}
    masker = kind(**settings.get(kind.__name__, {}))
    mask = draw(masker, 1)
    assert (mask.masked.sum(1) == masker.num_masked(GRID)).all() or masker.varies
    both = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(1).values
    assert torch.equal(both, torch.arange(196).expand(8, -1))
    torch.manual_seed(5)
    assert torch.equal(draw(masker, 1).masked, mask.masked)
    assert not torch.equal(draw(masker, 2).masked, mask.masked)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_has_words_and_masks_the_share_it_is_given(strategy) -> None:
    assert strategy.sentence.startswith("Masks ")
    assert bool(strategy.drawn) != (strategy.name in ("white", "red", "green", "blue", "purple"))
    assert strategy.masker(0.6).ratio == 0.6
    assert strategy.rgb == tuple(int(strategy.colour[place : place + 2], 16) for place in (1, 3, 5))


def test_names_and_colours_are_their_own() -> None:
    of_all = [strategy for masker in MASKERS for strategy in masker.strategies]
    assert len(of_all) == len(STRATEGIES) == len({strategy.colour for strategy in of_all})


def test_what_is_no_name_is_a_file() -> None:
    assert strategy_of("green") is STRATEGIES["green"]
    assert strategy_of("mine.npz").masker(0.5).bank == "mine.npz"
