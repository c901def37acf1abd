"""Multi-block lists: sizes, places, what is taken out of the context, and the cut."""

import pytest
import torch

from pantomim.masking.multi_block import MultiBlockMasker

GRID = (8, 10)
MASKER = MultiBlockMasker(min_keep=3)


def blocks(masker=MASKER, grid=GRID, batch_size=6, seed=0):
    return masker.blocks(batch_size, grid, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("targets", [1, 4])
@pytest.mark.parametrize("grid", [(8, 10), (14, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_lists_rise_have_one_length_and_stay_in_reach(seed, contexts, targets, grid):
    masker = MultiBlockMasker(num_contexts=contexts, num_targets=targets, min_keep=2, target_scale=(0.1, 0.2))
    found = blocks(masker, grid, seed=seed)
    assert found.context.shape[:2] == (contexts, 6)
    assert found.targets.shape[:2] == (targets, 6)
    for ids in found:
        assert (ids.diff(dim=-1) > 0).all()
        assert ids.min() >= 0
        assert ids.max() < grid[0] * grid[1]
        assert ids.shape[-1] > 2
    # The last row and column are out of the reach of targets: upper ends are excluded, as in the authors' code.
    rows, cols = found.targets // grid[1], found.targets % grid[1]
    assert rows.max() < grid[0] - 1
    assert cols.max() < grid[1] - 1


@pytest.mark.parametrize("seed", range(10))
def test_the_context_shares_no_patch_with_targets(seed):
    found = blocks(seed=seed, grid=(14, 14))  # large enough that no target is ever left in
    targets = found.targets.movedim(0, 1).flatten(1)
    assert not (found.context[0].unsqueeze(-1) == targets.unsqueeze(1)).any()


def test_draws_repeat_and_rows_are_parts_of_the_whole():
    whole, again = blocks(seed=3), blocks(seed=3)
    assert all(map(torch.equal, whole, again))
    assert not torch.equal(whole.targets, blocks(seed=4).targets)
    part = whole.rows(2, 3)
    assert torch.equal(part.context, whole.context[:, 2:5])
    assert torch.equal(part.targets, whole.targets[:, 2:5])


def test_overlap_may_be_allowed():
    alone = blocks(MultiBlockMasker(min_keep=3, allow_overlap=True))
    assert alone.context.shape[-1] > blocks().context.shape[-1]


def test_as_a_mask_all_but_the_context_is_masked():
    mask = MASKER(6, GRID, torch.Generator().manual_seed(0))
    context = blocks().context[0]
    assert not mask.masked.gather(1, context).any()
    assert (~mask.masked).sum(dim=1).eq(context.shape[1]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_scale": (0.3, 0.2)}, r"MultiBlockMasker\.target_scale must rise; got 0\.3 and 0\.2"),
        ({"context_scale": (0.0, 0.5)}, r"MultiBlockMasker\.context_scale must be in \(0, 1\]"),
        ({"num_targets": 0}, r"MultiBlockMasker\.num_targets must be at least 1; got 0"),
    ],
)
def test_settings_that_make_no_blocks(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiBlockMasker(**settings)


def test_blocks_that_can_be_too_small_are_refused_before_they_are_drawn():
    with pytest.raises(
        ValueError, match=r"min_keep must be below the patches of a block; got 10, and a block of 2 x 2"
    ):
        blocks(MultiBlockMasker(), (6, 6))
