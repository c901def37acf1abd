import torch

from pantomim.core.mask import Mask


def test_the_highest_scores_are_masked() -> None:
    mask = Mask.from_scores(torch.tensor([[0.1, 0.9, 0.5, 0.3], [4.0, 1.0, 2.0, 3.0]]), 2)
    assert mask.ids_mask.tolist() == [[1, 2], [0, 3]]
    assert mask.ids_keep.tolist() == [[0, 3], [1, 2]]
    assert mask.masked.tolist() == [[False, True, True, False], [True, False, False, True]]


def test_equal_scores_still_give_exact_counts() -> None:
    mask = Mask.from_scores(torch.zeros(3, 8), 5)
    assert (mask.masked.sum(dim=1) == 5).all()
    both = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(8).expand(3, -1))


def test_of_equal_scores_the_first_stay_visible() -> None:
    scores = torch.randint(4, (50, 196), generator=torch.Generator().manual_seed(0)).float()
    mask = Mask.from_scores(scores, 147)
    places = [sorted(range(196), key=lambda place, row=row: (row[place], place))[:49] for row in scores.tolist()]
    assert mask.ids_keep.tolist() == [sorted(row) for row in places]


def test_rows_are_slices() -> None:
    whole = Mask.from_scores(torch.rand(6, 8), 5)
    part = whole.rows(2, 3)
    for name in ("masked", "ids_keep", "ids_mask"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:5])
    assert part.weight is None
    weighted = Mask(whole.masked, whole.ids_keep, whole.ids_mask, torch.rand(6, 5))
    assert torch.equal(weighted.rows(2, 3).weight, weighted.weight[2:5])


def test_marked_patches_are_masked() -> None:
    masked = torch.tensor([[False, True, True, False], [True, False, False, True]])
    mask = Mask.from_masked(masked, 2)
    assert torch.equal(mask.masked, masked)
    assert mask.ids_mask.tolist() == [[1, 2], [0, 3]]
    assert mask.ids_keep.tolist() == [[0, 3], [1, 2]]
    assert mask.weight is None


def test_where_counts_vary_visible_patches_fill_up() -> None:
    mask = Mask.from_masked(torch.tensor([[False, True, True, False], [False, False, False, True]]), 2, varies=True)
    assert mask.ids_mask.tolist() == [[1, 2], [3, 0]]
    assert mask.ids_keep.tolist() == [[0, 3], [1, 2]]
    assert mask.weight.tolist() == [[1, 1], [1, 0]]


def test_ties_at_the_border_are_broken_in_their_own_rows_alone() -> None:
    scores = torch.randint(0, 5, (40, 37), generator=torch.Generator().manual_seed(1)).float()
    scores[::2] = torch.rand(20, 37, generator=torch.Generator().manual_seed(2))
    for num_masked in (1, 18, 36):
        mask = Mask.from_scores(scores, num_masked)
        order = scores.argsort(dim=1, stable=True)  # as on other devices
        assert torch.equal(mask.ids_mask, order[:, 37 - num_masked :].sort(dim=1).values)
        assert torch.equal(mask.ids_keep, order[:, : 37 - num_masked].sort(dim=1).values)
