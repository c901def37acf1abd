import random

import numpy as np
import pytest
import torch

from pantomim.core.mask import Mask
from pantomim.masking.inverse_block import InverseBlockMasker, grow


def draw(masker: InverseBlockMasker, batch_size: int, grid: tuple[int, int], seed: int = 0) -> Mask:
    return masker(batch_size, grid, torch.Generator().manual_seed(seed))


def blocks_around(centres: list[tuple[int, int]], block: int, grid: tuple[int, int]) -> np.ndarray:
    kept = np.zeros(grid, bool)
    for row, column in centres:
        top, left = row - block // 2, column - block // 2
        kept[max(top, 0) : top + block, max(left, 0) : left + block] = True
    return kept


def one_image(masker: InverseBlockMasker, grid: tuple[int, int]) -> np.ndarray:
    """Blocks around random patches, then single patches, one after another, until the count is right."""
    num_patches = grid[0] * grid[1]
    num_visible = num_patches - masker.num_masked(grid)
    centres = [divmod(random.randrange(num_patches), grid[1]) for _ in range(masker.num_blocks(grid))]
    kept = blocks_around(centres, masker.block, grid).reshape(-1)
    while kept.sum() > num_visible:
        kept[random.choice(np.flatnonzero(kept))] = False
    while kept.sum() < num_visible:
        kept[random.choice(np.flatnonzero(~kept))] = True
    return ~kept


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(4, 4), (5, 9)], ids=str)
def test_blocks_grow_around_every_patch(block: int, grid: tuple[int, int]) -> None:
    for row in range(grid[0]):
        for column in range(grid[1]):
            centres = torch.zeros(1, *grid)
            centres[0, row, column] = 1.0
            assert grow(centres, block)[0].bool().tolist() == blocks_around([(row, column)], block, grid).tolist()
    assert grow(torch.zeros(2, *grid), block).sum() == 0


@pytest.mark.parametrize(
    ("masker", "grid", "count", "blocks"),
    [
        (InverseBlockMasker(), (14, 14), 157, 5),
        (InverseBlockMasker(), (8, 8), 52, 1),
        (InverseBlockMasker(ratio=0.5, block=2, adjust=0.0), (7, 12), 42, 10),
        (InverseBlockMasker(ratio=0.05), (9, 5), 3, 5),
        (InverseBlockMasker(ratio=0.95), (9, 5), 43, 1),
        (InverseBlockMasker(ratio=0.5, block=1), (1, 6), 3, 3),
        (InverseBlockMasker(ratio=0.3, block=2), (2, 2), 2, 1),
    ],
    ids=str,
)
def test_the_same_count_in_every_image(
    masker: InverseBlockMasker, grid: tuple[int, int], count: int, blocks: int
) -> None:
    assert masker.num_masked(grid) == count
    assert masker.num_blocks(grid) == blocks
    mask = draw(masker, 64, grid)
    assert mask.ids_mask.shape == (64, count)
    assert (mask.masked.sum(dim=1) == count).all()
    assert mask.weight is None
    everything = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(grid[0] * grid[1]).expand(64, -1))


@pytest.mark.parametrize(
    ("masker", "grid"),
    [
        (InverseBlockMasker(), (7, 9)),  # blocks cover too little or too much, by chance
        (InverseBlockMasker(ratio=0.7, block=2, adjust=0.4), (6, 5)),  # too much: some of it is masked again
        (InverseBlockMasker(ratio=0.3, adjust=0.0), (5, 6)),  # too little: single patches are shown
    ],
    ids=str,
)
def test_the_distribution_is_that_of_a_plain_sampler(masker: InverseBlockMasker, grid: tuple[int, int]) -> None:
    random.seed(0)
    theirs = np.array([one_image(masker, grid) for _ in range(800)])
    own = draw(masker, 4000, grid).masked.numpy()
    for first, second in [(theirs, own)] + [
        (theirs & np.roll(theirs, shift, 1), own & np.roll(own, shift, 1)) for shift in (1, 2, grid[1], grid[1] + 1)
    ]:
        error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
        assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) <= 5 * error).all()


def test_the_generator_alone_decides() -> None:
    masker = InverseBlockMasker()
    first = draw(masker, 8, (8, 8), seed=1)
    torch.manual_seed(5)
    assert torch.equal(first.masked, draw(masker, 8, (8, 8), seed=1).masked)
    assert not torch.equal(first.masked, draw(masker, 8, (8, 8), seed=2).masked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 80.0}, r"InverseBlockMasker.ratio must be in \(0, 1\)"),
        ({"block": 0}, "InverseBlockMasker.block must be at least 1; got 0"),
        ({"adjust": -0.1}, r"InverseBlockMasker.adjust must be in \[0, 1\]; got -0.1"),
        ({"adjust": float("nan")}, r"InverseBlockMasker.adjust must be in \[0, 1\]; got nan"),
    ],
    ids=str,
)
def test_values_out_of_range(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InverseBlockMasker(**changes)


@pytest.mark.parametrize(
    ("masker", "grid", "message"),
    [
        (InverseBlockMasker(), (2, 9), "InverseBlockMasker.block must fit into the grid; got 3 for 2x9"),
        (InverseBlockMasker(ratio=0.99), (4, 4), "leaves no visible one of 16"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_grid(masker: InverseBlockMasker, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(masker, 2, grid)
