import pytest
import torch

from pantomim.masking.block import BlockMasker
from pantomim.masking.choice import STRATEGIES
from pantomim.masking.grid import GridMasker
from pantomim.masking.mask import Masker
from pantomim.masking.random import RandomMasker
from pantomim.masking.schedule import ScheduleMasker, Stage

RANDOM, CELLS = RandomMasker(ratio=0.5), GridMasker(ratio=0.5)


def draw(masker, epoch):
    return masker(6, (8, 8), torch.Generator().manual_seed(0), epoch).masked


def test_each_epoch_has_the_last_stage_that_has_begun() -> None:
    schedule = ScheduleMasker(stages=(Stage(RANDOM), Stage(CELLS, 2.0), Stage(BlockMasker(ratio=0.5), 4.0)))
    for epoch, masker in [(0.0, RANDOM), (1.99, RANDOM), (2.0, CELLS), (3.5, CELLS), (4.0, BlockMasker(ratio=0.5))]:
        assert torch.equal(draw(schedule, epoch), draw(masker, epoch))
    assert schedule.num_masked((8, 8)) == 32
    assert not schedule.varies


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage(RANDOM, 1.0),),
        (Stage(RANDOM), Stage(CELLS, 2.0), Stage(RANDOM, 2.0)),
        (Stage(RANDOM), Stage(CELLS, float("nan"))),
    ],
)
def test_epochs_rise_from_zero(stages) -> None:
    with pytest.raises(ValueError, match="must begin at epoch 0 and rise"):
        ScheduleMasker(stages=stages)


def test_all_stages_hide_equally_many() -> None:
    schedule = ScheduleMasker(stages=(Stage(RANDOM), Stage(RandomMasker(ratio=0.75), 1.0)))
    with pytest.raises(ValueError, match=r"same number of patches; got \[32, 48\]"):
        schedule.num_masked((8, 8))
    with pytest.raises(ValueError, match="exact counts or all"):
        ScheduleMasker(stages=(Stage(RANDOM), Stage(BlockMasker(exact=False), 1.0)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_a_masker_at_its_ratio(name) -> None:
    masker = STRATEGIES[name](0.6)
    assert isinstance(masker, Masker)
    assert hash(masker) == hash(STRATEGIES[name](0.6))  # a value
    assert abs(masker.num_masked((14, 14)) / 196 - 0.6) < 0.03
