import pytest
import torch

from pantomim.nn.pyramid import Pyramid, tapped_blocks
from pantomim.nn.tokens import as_map
from pantomim.nn.vit import Features


def taps(grid, width=4):
    generator = torch.Generator().manual_seed(0)
    shape = (2, grid[0] * grid[1] + 1, width)
    drawn = [torch.rand(shape, generator=generator) for _ in range(4)]
    return [Features(tokens[:, :1], tokens[:, 1:]) for tokens in drawn]


def test_published_models_are_tapped_where_their_configs_say():
    assert tapped_blocks(12) == (3, 5, 7, 11)
    assert tapped_blocks(24) == (7, 11, 15, 23)


@pytest.mark.parametrize("depth", range(4, 41))
def test_taps_of_any_depth_are_four_and_end_with_the_last_block(depth):
    found = tapped_blocks(depth)
    assert len(set(found)) == 4
    assert list(found) == sorted(found)
    assert (found[0] >= 0, found[-1]) == (True, depth - 1)


def test_too_few_blocks():
    with pytest.raises(ValueError, match="depth must be at least 4; got 3"):
        tapped_blocks(3)


@pytest.mark.parametrize("patch_size", [4, 8, 16, 32])
def test_levels_have_strides_4_to_32(patch_size):
    grid = (64 // patch_size, 96 // patch_size)
    levels = Pyramid(4, patch_size, grid)(taps(grid))
    assert [tuple(level.shape) for level in levels] == [(2, 4, 64 // s, 96 // s) for s in (4, 8, 16, 32)]


def test_patches_of_14_pixels_are_taken_as_16():
    grid = (4, 6)
    shapes = [[level.shape for level in Pyramid(4, size, grid)(taps(grid))] for size in (14, 16)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("changed", range(4))
def test_each_level_reads_its_own_tap_and_no_prefix_token(changed):
    grid = (4, 6)
    pyramid, given = Pyramid(4, 16, grid).eval(), taps(grid)
    before = pyramid(given)
    given[changed] = Features(given[changed].prefix, given[changed].patches + 1)
    other = [Features(tap.prefix + 1, tap.patches) for tap in given]
    different = [not torch.equal(*pair) for pair in zip(before, pyramid(other), strict=True)]
    assert different == [number == changed for number in range(4)]


def test_patches_lie_row_by_row():
    patches = torch.arange(6.0).view(1, 6, 1)
    assert as_map(patches, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_images_too_small_for_the_coarsest_level():
    with pytest.raises(ValueError, match=r"at least 8 rows and columns of patches of 4 pixels; got 7 x 9"):
        Pyramid(4, 4, (7, 9))
