import pytest
import torch

from pantomim.core.mask import Mask
from pantomim.masking.random import RandomMasker


def draw(masker: RandomMasker, batch_size: int, grid: tuple[int, int], seed: int = 0) -> Mask:
    return masker(batch_size, grid, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("ratio", "num_patches", "visible"), [(0.75, 196, 49), (0.9, 196, 19), (0.9, 100, 9), (0.75, 256, 64), (0.5, 7, 3)]
)
def test_counts_are_truncated_as_in_mae(ratio: float, num_patches: int, visible: int) -> None:
    masker = RandomMasker(ratio=ratio)
    assert masker.num_masked((1, num_patches)) == num_patches - visible
    mask = draw(masker, 3, (1, num_patches))
    assert mask.ids_keep.shape == (3, visible)
    assert (mask.masked.sum(dim=1) == num_patches - visible).all()


def test_ids_and_booleans_agree_and_stand_in_raster_order() -> None:
    mask = draw(RandomMasker(), 64, (5, 6))
    for image in range(64):
        assert mask.ids_keep[image].tolist() == (~mask.masked[image]).nonzero().flatten().tolist()
        assert mask.ids_mask[image].tolist() == mask.masked[image].nonzero().flatten().tolist()


def test_every_patch_is_masked_equally_often() -> None:
    num_images, ratio = 20000, 0.75
    share = draw(RandomMasker(ratio=ratio), num_images, (3, 4)).masked.double().mean(dim=0)
    std = (ratio * (1 - ratio) / num_images) ** 0.5
    assert ((share - ratio).abs() < 5 * std).all()


def test_pairs_of_patches_are_independent_but_for_the_count() -> None:
    masked = draw(RandomMasker(), 20000, (3, 4)).masked.double()
    both = (masked.T @ masked / len(masked))[~torch.eye(12, dtype=torch.bool)]
    expected = 9 / 12 * 8 / 11
    assert ((both - expected).abs() < 5 * (expected * (1 - expected) / len(masked)) ** 0.5).all()


@pytest.mark.parametrize(("ratio", "left"), [(0.99, "visible"), (1e-9, "visible|masked")])
def test_one_visible_and_one_masked_patch_at_least(ratio: float, left: str) -> None:
    masker = RandomMasker(ratio=ratio)
    if left == "visible":
        with pytest.raises(ValueError, match="leaves no visible one of 16"):
            masker.num_masked((4, 4))
    else:
        assert 1 <= masker.num_masked((4, 4)) < 16
