import math
import random

import numpy as np
import pytest
import torch

from pantomim.core.mask import Mask
from pantomim.masking.grid import GridMasker


def draw(masker: GridMasker, batch_size: int, grid: tuple[int, int], seed: int = 0) -> Mask:
    return masker(batch_size, grid, torch.Generator().manual_seed(seed))


def one_image(masker: GridMasker, grid: tuple[int, int]) -> np.ndarray:
    """Cells are masked one after another, patch by patch, until there are enough."""
    rows, columns = masker.cells(grid)
    masked, left = np.zeros(grid, bool), masker.num_masked(grid)
    for cell in random.sample(range(rows * columns), rows * columns):
        row, column = (masker.cell * index for index in divmod(cell, columns))
        patches = [
            (r, c)
            for r in range(row, min(row + masker.cell, grid[0]))
            for c in range(column, min(column + masker.cell, grid[1]))
        ]
        for patch in random.sample(patches, min(left, len(patches))):
            masked[patch] = True
            left -= 1
    return masked


def num_partial(masked: np.ndarray, cell: int) -> int:
    """Cells of which some patches are masked and some are not."""
    parts = [
        masked[r : r + cell, c : c + cell] for r in range(0, len(masked), cell) for c in range(0, len(masked[0]), cell)
    ]
    return sum(part.any() and not part.all() for part in parts)


@pytest.mark.parametrize(
    ("ratio", "cell", "grid", "count"),
    [
        (0.6, 2, (14, 14), 120),  # 30 of 49 cells
        (0.45, 4, (16, 16), 128),  # 8 of 16
        (0.6, 1, (14, 14), 118),
        (0.5, 2, (4, 10), 20),
        (0.6, 2, (7, 7), 31),  # 10 of 16 cells: 30.6
        (0.5, 3, (4, 5), 10),
        (0.5, 8, (4, 9), 18),  # two cells, a wide and a narrow one
    ],
)
def test_the_same_count_in_every_image(ratio: float, cell: int, grid: tuple[int, int], count: int) -> None:
    masker = GridMasker(ratio=ratio, cell=cell)
    assert masker.num_masked(grid) == count
    mask = draw(masker, 64, grid)
    assert mask.ids_mask.shape == (64, count)
    assert (mask.masked.sum(dim=1) == count).all()
    assert mask.weight is None
    everything = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(grid[0] * grid[1]).expand(64, -1))
    divided = not (grid[0] % cell or grid[1] % cell)
    for image in mask.masked.view(64, *grid).numpy():
        assert num_partial(image, cell) <= (0 if divided else 1)


@pytest.mark.parametrize(("ratio", "cell", "grid"), [(0.6, 2, (6, 4)), (0.5, 2, (5, 4)), (0.4, 3, (5, 7))], ids=str)
def test_the_distribution_is_that_of_a_plain_sampler(ratio: float, cell: int, grid: tuple[int, int]) -> None:
    masker = GridMasker(ratio=ratio, cell=cell)
    random.seed(0)
    theirs = np.array([one_image(masker, grid) for _ in range(1000)]).reshape(1000, -1)
    own = draw(masker, 5000, grid).masked.numpy()
    for first, second in [(theirs, own)] + [
        (theirs & np.roll(theirs, shift, 1), own & np.roll(own, shift, 1)) for shift in (1, grid[1], grid[1] + 1)
    ]:
        error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
        assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) <= 5 * error).all()


def test_every_cell_is_masked_equally_often() -> None:
    share = draw(GridMasker(), 8000, (14, 14)).masked.double().mean(dim=0)
    assert ((share - 30 / 49).abs() < 5 * math.sqrt(30 / 49 * 19 / 49 / 8000)).all()


def test_a_cell_has_a_patch() -> None:
    with pytest.raises(ValueError, match=r"GridMasker.cell must be at least 1; got 0"):
        GridMasker(cell=0)


@pytest.mark.parametrize(("masker", "grid"), [(GridMasker(ratio=0.99), (4, 4)), (GridMasker(cell=8), (8, 8))], ids=str)
def test_one_visible_cell_at_least(masker: GridMasker, grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"GridMasker.ratio must leave at least one visible"):
        masker.num_masked(grid)
