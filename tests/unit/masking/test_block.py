import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pantomim.core.mask import Mask
from pantomim.masking import block
from pantomim.masking.block import BlockMasker
from pantomim.masking.rectangles import FromGenerator, cover, fill

GRIDS = [(14, 14), (8, 8), (7, 12), (12, 7), (2, 2), (3, 5), (2, 9), (5, 70), (9, 128)]


def draw(masker: BlockMasker, batch_size: int, grid: tuple[int, int], seed: int = 0) -> Mask:
    return masker(batch_size, grid, torch.Generator().manual_seed(seed))


def one_image(
    masker: BlockMasker, grid: tuple[int, int], uniform: Callable = random.uniform, randint: Callable = random.randint
) -> tuple[np.ndarray, int, int]:
    """The sampler as its description says, without a limit of rounds: mask, number of rectangles, size of the first."""
    (height, width), total = grid, masker.num_masked(grid)
    min_area = masker.rule(grid).min_area
    masked, accepted = np.zeros(grid, bool), []
    while masked.sum() < total:
        cap = min(total - masked.sum(), masker.max_area or total)
        for _ in range(10):
            area = uniform(min_area, cap)
            aspect = math.exp(uniform(math.log(masker.min_aspect), -math.log(masker.min_aspect)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (h < height and w < width):
                continue
            top, left = randint(0, height - h), randint(0, width - w)
            new = h * w - masked[top : top + h, left : left + w].sum()
            if 0 < new <= cap:
                masked[top : top + h, left : left + w] = True
                accepted.append(new)
                break
        else:
            if not masker.exact:
                break
    return masked, len(accepted), accepted[0] if accepted else 0


class Script:
    """A source that plays back what a plain sampler drew for each image."""

    def __init__(self, sequences: list[list[float]]) -> None:
        self.sequences = [iter(sequence) for sequence in sequences]

    def uniform(self, images, low, high):
        return np.array([next(self.sequences[image]) for image in images], np.float64)

    def integers(self, images, high):
        return self.uniform(images, 0, high)


class Stubborn:
    """A source that proposes one and the same rectangle."""

    def uniform(self, images, low, high):
        return np.full(len(images), 4.0 if low > 0 else 0.0)

    def integers(self, images, high):
        return np.zeros(len(images))


@pytest.mark.parametrize(
    ("ratio", "grid", "count"),
    [
        (0.383, (14, 14), 75),
        (75 / 196, (14, 14), 75),
        (0.4, (14, 14), 78),
        (0.5, (14, 14), 98),
        (0.383, (8, 8), 25),
        (78 / 256, (16, 16), 78),
    ],
)
def test_counts_are_those_of_the_papers(ratio: float, grid: tuple[int, int], count: int) -> None:
    assert BlockMasker(ratio=ratio).num_masked(grid) == count


@pytest.mark.parametrize("grid", [(2, 2), (7, 7), (14, 14), (32, 32)])
def test_every_count_can_be_written_as_a_ratio(grid: tuple[int, int]) -> None:
    num_patches = grid[0] * grid[1]
    counts = range(1, num_patches)
    assert [BlockMasker(ratio=count / num_patches).num_masked(grid) for count in counts] == list(counts)


@pytest.mark.parametrize(
    ("grid", "min_area"), [((14, 14), 16), ((8, 8), 5), ((16, 16), 21), ((3, 3), 1), ((2, 300), 3)]
)
def test_the_smallest_rectangle_goes_with_the_grid(grid: tuple[int, int], min_area: int) -> None:
    assert BlockMasker().rule(grid).min_area == min_area
    assert BlockMasker(min_area=2).rule(grid).min_area == 2
    assert BlockMasker(ratio=0.3, max_area=1).rule(grid).min_area == 1


@pytest.mark.parametrize(("grid", "ratio"), list(itertools.product(GRIDS, [0.1, 0.383, 0.75, 0.97])), ids=str)
def test_an_exact_count_is_exact_and_ids_hold_every_patch_once(grid: tuple[int, int], ratio: float) -> None:
    masker, num_patches = BlockMasker(ratio=ratio), grid[0] * grid[1]
    if not 0 < round(ratio * num_patches) < num_patches:
        with pytest.raises(ValueError, match="must leave at least one visible and one masked patch"):
            draw(masker, 2, grid)
        return
    mask = draw(masker, 16, grid)
    count = masker.num_masked(grid)
    assert (mask.masked.sum(dim=1) == count).all()
    assert mask.ids_mask.shape == (16, count)
    assert mask.weight is None
    for image in range(16):
        assert mask.ids_keep[image].tolist() == (~mask.masked[image]).nonzero().flatten().tolist()
        assert mask.ids_mask[image].tolist() == mask.masked[image].nonzero().flatten().tolist()


@pytest.mark.parametrize("grid", [(14, 14), (6, 9), (4, 70)], ids=str)
def test_where_the_count_varies_visible_patches_fill_up(grid: tuple[int, int]) -> None:
    masker = BlockMasker(ratio=0.4, exact=False)
    mask = draw(masker, 200, grid)
    counts = mask.masked.sum(dim=1)
    assert mask.ids_mask.shape == (200, masker.num_masked(grid))
    assert counts.max() == masker.num_masked(grid)
    assert counts.min() < counts.max()
    assert torch.equal(mask.weight.sum(dim=1), counts.float())
    assert torch.equal(mask.weight.bool(), mask.masked.gather(1, mask.ids_mask))
    assert not mask.masked.gather(1, mask.ids_keep).any()
    everything = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(grid[0] * grid[1]).expand(200, -1))
    for image, count in enumerate(counts.tolist()):
        assert mask.ids_mask[image, :count].tolist() == mask.masked[image].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("masker", "grid"),
    [
        (BlockMasker(ratio=0.4, exact=False), (6, 9)),
        (BlockMasker(ratio=0.5, min_aspect=0.5), (9, 6)),
        (BlockMasker(ratio=0.6, exact=False, min_area=3, max_area=9), (7, 7)),
        (BlockMasker(ratio=0.1, exact=False, min_area=2), (5, 8)),
    ],
    ids=str,
)
def test_the_distribution_is_that_of_the_plain_sampler(masker: BlockMasker, grid: tuple[int, int]) -> None:
    random.seed(0)
    plain = [one_image(masker, grid) for _ in range(800)]
    ours = masker.cover(4000, grid, FromGenerator(np.random.default_rng(0)))
    maps = np.array([masked for masked, _, _ in plain]).reshape(len(plain), -1)
    pairs = [
        (maps, ours.masked),  # how often a patch is masked
        (maps & np.roll(maps, 1, axis=1), ours.masked & np.roll(ours.masked, 1, axis=1)),  # and it and its neighbour
        (maps.sum(axis=1), ours.masked.sum(axis=1)),
        (maps.sum(axis=1) ** 2, ours.masked.sum(axis=1) ** 2),
        (np.array([number for _, number, _ in plain]), ours.num_rectangles),
        (np.array([number for _, number, _ in plain]) ** 2, ours.num_rectangles**2),
        (np.array([first for _, _, first in plain]), ours.first),
        (np.array([first for _, _, first in plain]) ** 2, ours.first**2),
    ]
    for theirs, own in pairs:
        error = np.sqrt(theirs.var(axis=0) / len(theirs) + own.var(axis=0) / len(own))
        assert (np.abs(theirs.mean(axis=0) - own.mean(axis=0)) <= 5 * error + 1e-3).all()


@pytest.mark.parametrize("masker", [BlockMasker(ratio=0.3), BlockMasker(ratio=0.3, exact=False, max_area=40)], ids=str)
@pytest.mark.parametrize("grid", [(14, 14), (5, 70), (3, 130)], ids=str)
def test_the_same_random_numbers_give_the_same_masks(masker: BlockMasker, grid: tuple[int, int]) -> None:
    random.seed(1)
    sequences: list[list[float]] = []
    plain = []
    for _ in range(20):
        drawn: list[float] = []

        def recorded(function: Callable, drawn: list[float] = drawn) -> Callable:
            return lambda low, high: drawn.append(function(low, high)) or drawn[-1]

        plain.append(one_image(masker, grid, recorded(random.uniform), recorded(random.randint)))
        sequences.append(drawn)
    script = Script(sequences)
    ours = masker.cover(20, grid, script, ahead=1)
    assert (ours.masked == np.array([masked for masked, _, _ in plain]).reshape(20, -1)).all()
    assert ours.num_rectangles.tolist() == [number for _, number, _ in plain]
    assert ours.first.tolist() == [first for _, _, first in plain]
    assert all(next(rest, None) is None for rest in script.sequences)  # nothing is left over


@pytest.mark.parametrize(
    ("ratio", "corner", "edge", "centre"), [(0.383, 0.044, 0.187, 0.72), (0.5, 0.063, 0.286, 0.868)]
)
def test_rectangles_gather_in_the_middle(ratio: float, corner: float, edge: float, centre: float) -> None:
    share = draw(BlockMasker(ratio=ratio), 6000, (14, 14)).masked.double().mean(dim=0).view(14, 14)
    for own, expected in [
        (share[[0, 0, -1, -1], [0, -1, 0, -1]].mean(), corner),
        (torch.stack([share[0, 6:8], share[-1, 6:8], share[6:8, 0], share[6:8, -1]]).mean(), edge),
        (share[6:8, 6:8].mean(), centre),
    ]:
        assert abs(own - expected) < 5 * math.sqrt(expected * (1 - expected) / 6000) + 0.001
    opposite = share.flip(0, 1)  # the last row and column are as good as the first
    assert ((share - opposite).abs() < 5 * (2 * share * (1 - share) / 6000).sqrt()).all()


def test_beit_gives_up_as_often_as_the_authors() -> None:
    counts = draw(BlockMasker(exact=False), 6000, (14, 14)).masked.sum(dim=1).double()
    assert abs((counts == 75).double().mean() - 0.666) < 5 * math.sqrt(0.666 * 0.334 / 6000) + 0.001
    assert abs(counts.mean() - 74.47) < 5 * counts.std() / math.sqrt(6000) + 0.01
    assert counts.min() >= 60


@pytest.mark.parametrize("exact", [True, False])
def test_the_generator_alone_decides(exact: bool) -> None:
    masker = BlockMasker(exact=exact)
    first = draw(masker, 16, (8, 8), seed=1)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert torch.equal(first.masked, draw(masker, 16, (8, 8), seed=1).masked)
    assert not torch.equal(first.masked, draw(masker, 16, (8, 8), seed=2).masked)
    generator = torch.Generator().manual_seed(1)
    views = [masker(16, (8, 8), generator).masked for _ in range(2)]
    assert torch.equal(views[0], first.masked)
    assert not torch.equal(views[0], views[1])  # the generator has moved on
    assert len({tuple(row) for row in first.masked.tolist()}) == 16


def test_the_guard_makes_up_an_exact_count(monkeypatch: pytest.MonkeyPatch) -> None:
    masker = BlockMasker(ratio=0.5, min_area=2)
    covered = masker.cover(3, (6, 6), Stubborn())
    assert covered.masked.sum(axis=1).tolist() == [4, 4, 4]  # a square, over and over
    assert covered.num_rectangles.tolist() == [1, 1, 1]
    monkeypatch.setattr(block, "FRUITLESS_ROUNDS", 0)
    mask = draw(masker, 4000, (6, 6))
    assert (mask.masked.sum(dim=1) == 18).all()
    assert ((mask.masked.double().mean(dim=0) - 0.5).abs() < 5 * 0.5 / math.sqrt(4000)).all()


def test_filling_leaves_what_is_covered() -> None:
    masked = np.zeros((2000, 10), bool)
    masked[:, :3] = True
    masked[0, :6] = True
    filled = fill(masked, 6, np.random.default_rng(0))
    assert (filled.sum(axis=1) == 6).all()
    assert filled[:, :3].all()
    assert (filled[0] == masked[0]).all()
    share = filled[1:, 3:].mean(axis=0)
    assert (abs(share - 3 / 7) < 5 * math.sqrt(3 / 7 * 4 / 7 / 1999)).all()


@pytest.mark.parametrize("ahead", [1, 3, 40])
def test_how_many_proposals_are_made_ahead_does_not_matter(ahead: int) -> None:
    rule = BlockMasker(ratio=0.4, exact=False).rule((6, 9))
    counts = [
        cover(4000, (6, 9), rule, FromGenerator(np.random.default_rng(seed)), width).masked.sum(axis=1)
        for seed, width in ((0, None), (1, ahead))
    ]
    error = math.sqrt(sum(count.var() / 4000 for count in counts))
    assert abs(counts[0].mean() - counts[1].mean()) < 5 * error


@pytest.mark.parametrize(
    "changes", [{"min_area": 0}, {"max_area": 0}, {"min_aspect": 0.0}, {"min_aspect": 1.5}], ids=str
)
def test_values_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"BlockMasker.{next(iter(changes))} must be"):
        BlockMasker(**changes)


@pytest.mark.parametrize(
    ("masker", "grid", "message"),
    [
        (BlockMasker(), (1, 20), "BlockMasker.grid must have at least two rows and two columns; got 1x20"),
        (BlockMasker(min_area=9, max_area=8), (8, 8), "min_area must be at most max_area .* got 9 for 8 and 25"),
        (BlockMasker(min_area=26), (8, 8), "got 26 for 25 and 25"),
        (BlockMasker(min_area=8), (2, 300), "min_area must be below 7.5 on a grid of 2x300, .* got 8"),
        (BlockMasker(ratio=0.001), (8, 8), "leaves no masked one of 64"),
        (BlockMasker(ratio=0.999), (8, 8), "leaves no visible one of 64"),
    ],
    ids=str,
)
def test_what_does_not_go_with_the_grid(masker: BlockMasker, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(masker, 2, grid)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_never_waits() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    masker = BlockMasker(exact=False)
    masker(2, (14, 14), generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = (masker(512, (14, 14), generator) for _ in range(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first.ids_mask.is_cuda
    assert not torch.equal(first.masked, second.masked)
    generator.manual_seed(0)
    masker(2, (14, 14), generator)
    assert torch.equal(masker(512, (14, 14), generator).masked, first.masked)
