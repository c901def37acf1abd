import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pantomim.analysis.masks import choose_maskers, load_photo, parse_grid, survey
from pantomim.core.mask import Mask
from pantomim.masking import STRATEGIES
from pantomim.masking.bank import write_bank
from pantomim.masking.random import RandomMasker


@pytest.fixture
def bank(tmp_path):
    write_bank(tmp_path / "mine.npz", torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0)))
    return tmp_path / "mine.npz"


def test_a_survey_holds_what_was_drawn_and_measured():
    found = survey("random", RandomMasker(ratio=0.75), (6, 10), num=50, seed=3)
    again = RandomMasker(ratio=0.75)(50, (6, 10), torch.Generator().manual_seed(3)).masked.view(50, 6, 10).numpy()
    np.testing.assert_array_equal(found.visible, ~again)
    assert found.grid == (6, 10)
    assert (found.num_masked == 45).all()
    assert found.visibility.mean() == pytest.approx(0.25)
    assert len(found.spectrum) == 7  # round(10 / sqrt(2))
    assert (found.pattern, found.left_out) == (None, 0)


@pytest.mark.parametrize("grid", [(6, 8), (20, 9), (30, 40)])
def test_a_pattern_is_shown_around_its_window(bank, grid):
    masker = choose_maskers([], 0.75, bank)["mine"]
    pattern = survey("mine", masker, grid, num=10, seed=0).pattern
    assert pattern is not None
    assert pattern.values.shape == (min(4 * grid[0], 30), min(4 * grid[1], 40))
    assert pattern.window.shape == grid
    assert pattern.window[pattern.visible].min() > pattern.window[~pattern.visible].max()
    assert (~pattern.visible).sum() == masker.num_masked(grid)


class Forgetful:
    """Hides nothing in the first image, and all but one patch in the others."""

    varies = True

    def __init__(self, empty):
        self.empty = empty

    def num_masked(self, grid):
        return grid[0] * grid[1] - 1

    def __call__(self, batch_size, grid, generator, attention=None):
        masked = torch.ones(batch_size, grid[0] * grid[1], dtype=torch.bool)
        masked[:, 0] = False
        masked[: self.empty] = False
        return Mask.from_masked(masked, self.num_masked(grid), varies=True)


def test_masks_that_hide_nothing_are_counted_and_left_out():
    found = survey("forgetful", Forgetful(1), (4, 4), num=5, seed=0)
    assert found.left_out == 1
    assert found.num_masked.tolist() == [0, 15, 15, 15, 15]
    assert found.statistics.num_clusters.tolist() == [1] * 4
    with pytest.raises(ValueError, match="where each of 5 draws masks all or nothing"):
        survey("forgetful", Forgetful(5), (4, 4), num=5, seed=0)


def test_strategies_are_found_by_name_once_and_a_bank_comes_last(bank):
    assert list(choose_maskers(["random", "blue", "random"], 0.6, bank)) == ["random", "blue", "mine"]
    assert choose_maskers(["random"], 0.6)["random"] == RandomMasker(ratio=0.6)
    with pytest.raises(ValueError, match=r"no strategy grean. Did you mean green\? There are random, .*inverse_block"):
        choose_maskers(["grean"], 0.75)
    with pytest.raises(ValueError, match=r"no strategy xyz\. There are random"):
        choose_maskers(["xyz"], 0.75)
    with pytest.raises(ValueError, match="must name at least one"):
        choose_maskers([], 0.75)


@pytest.mark.parametrize(
    "name", [name for name in STRATEGIES if name not in ("red", "green", "blue", "purple", "white")]
)
def test_every_strategy_without_patterns_can_be_surveyed(name):
    found = survey(name, STRATEGIES[name].masker(0.6), (9, 12), num=40, seed=0)
    assert np.isfinite(found.spectrum).all()
    assert 0 < found.visible.mean() < 1


@pytest.mark.parametrize(("text", "grid"), [("14x14", (14, 14)), (" 7X28 ", (7, 28)), ("3×5", (3, 5))])
def test_a_grid_is_rows_and_columns(text, grid):
    assert parse_grid(text) == grid


@pytest.mark.parametrize("text", ["14", "14x", "0x4", "14x14x3", "axb", "-1x4"])
def test_anything_else_is_no_grid(text):
    with pytest.raises(ValueError, match=r"masks.grid must be ROWSxCOLUMNS; got .*Write 14x14"):
        parse_grid(text)


def test_a_photo_is_cut_and_resized_to_whole_patches(tmp_path):
    pixels = np.zeros((60, 200, 3), dtype=np.uint8)
    pixels[:, 70:130] = (250, 10, 20)  # the middle, as high as wide
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo = load_photo(tmp_path / "a.png", (7, 7))
    assert photo.pixels.shape[0] == photo.pixels.shape[1] == 7 * 46
    assert (photo.pixels[20:-20, 20:-20] == (250, 10, 20)).all()
    assert load_photo(tmp_path / "a.png", (5, 15)).pixels.shape == (5 * 21, 15 * 21, 3)


def test_photos_of_other_kinds_are_shown_too(tmp_path):
    Image.fromarray(np.full((20, 30), 7, dtype=np.uint8)).save(tmp_path / "gray.png")
    assert load_photo(tmp_path / "gray.png", (4, 6)).pixels.shape == (4 * 53, 6 * 53, 1)
    bands = np.linspace(0, 9000, 4 * 20 * 20).reshape(4, 20, 20).astype(np.uint16)
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", metadata={"axes": "SYX"})
    shown = load_photo(tmp_path / "bands.tif", (4, 4)).pixels
    assert shown.shape[2] == 3
    assert np.ptp(shown) > 200  # stretched


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    for path in (tmp_path / "broken.jpg", tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=r"masks.image must be a readable picture; got .*Give another file"):
            load_photo(path, (4, 4))
