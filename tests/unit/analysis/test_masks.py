import json
from pathlib import Path

import numpy as np
import pytest

from pantomim.analysis.masks import field_bands, frequencies, mask_spectrum, visible_statistics

GOLDEN = Path(__file__).parents[4] / "shared" / "golden" / "colormae_spectra.json"


def visible(*pictures: str) -> np.ndarray:
    """Masks as one would draw them: # is visible."""
    return np.array([[[cell == "#" for cell in row] for row in picture.split()] for picture in pictures])


SQUARE = "..... .##.. .##.. ..... ....."
CHECKERS = "#.#.# .#.#. #.#.# .#.#. #.#.#"
ROW = "..... ..... ##### ..... ....."
CORNERS = "#...# ..... ..... ..... #...#"


def test_clusters_neighbours_and_distances_of_drawn_masks():
    found = visible_statistics(visible(SQUARE, CHECKERS, ROW, CORNERS))
    assert found.num_visible.tolist() == [4, 13, 5, 4]
    assert found.num_clusters.tolist() == [1, 13, 1, 4]
    assert found.largest_cluster.tolist() == [4, 1, 5, 1]
    np.testing.assert_allclose(found.neighbours, [2.0, 0.0, 8 / 5, 0.0])
    np.testing.assert_allclose(found.max_distance, [np.sqrt(8), 1.0, 2.0, np.sqrt(8)])
    np.testing.assert_allclose(found.mean_distance[1:3], [1.0, 1.5])


def test_masks_do_not_see_each_other():
    alone = [visible_statistics(visible(picture)) for picture in (ROW, CORNERS)]
    together = visible_statistics(visible(ROW, CORNERS))
    for index, single in enumerate(alone):
        for name, value in vars(single).items():
            assert getattr(together, name)[index] == value[0], name


def test_touching_corners_are_no_neighbours_and_a_snake_is_one_cluster():
    found = visible_statistics(visible("#. .#", "## .#"))
    assert found.num_clusters.tolist() == [2, 1]


@pytest.mark.parametrize("grid", [(14, 14), (12, 20)])
def test_white_noise_has_power_one_at_every_frequency(grid):
    draws = np.random.default_rng(0).random((2000, *grid)).reshape(2000, -1)
    masks = (draws.argsort(axis=1).argsort(axis=1) < grid[0] * grid[1] // 4).reshape(2000, *grid)
    assert np.abs(mask_spectrum(masks).mean(axis=0) - 1.0).max() < 0.1
    flat = field_bands(draws[:200].reshape(200, *grid)).mean(axis=0)
    assert np.nanmax(np.abs(flat - 1.0)) < 0.1


def test_a_checkerboard_has_all_its_power_in_the_last_bin():
    rows, cols = np.indices((8, 8))
    spectrum = mask_spectrum(((rows + cols) % 2 == 0)[None])[0]
    assert len(spectrum) == 6  # 8 / sqrt(2), rounded
    np.testing.assert_allclose(spectrum[:-1], 0.0, atol=1e-12)
    np.testing.assert_allclose(spectrum[-1], 64.0)  # one frequency has the power of 64


def test_stripes_stand_at_their_frequency_whatever_the_other_side():
    stripes = np.zeros((1, 6, 24), dtype=bool)
    stripes[..., ::4] = True  # 0.25 cycles a patch, and 0.5: k = 6 and 12 of 24
    spectrum = mask_spectrum(stripes)[0]
    assert {6, 12} == set(np.flatnonzero(spectrum > 1e-9) + 1)
    bands = field_bands(stripes.astype(np.float32))[0]
    assert set(np.flatnonzero(bands > 1e-9)) == {4, 6}  # 0.25 belongs to the band that begins there


def test_every_frequency_but_zero_is_in_one_bin():
    for grid in [(1, 9), (2, 2), (3, 20), (7, 5)]:
        radius = frequencies(*grid)
        assert np.isfinite(mask_spectrum(np.eye(*grid, dtype=bool)[None])).all()
        assert (radius > 0).sum() == radius.size - 1


@pytest.mark.parametrize("fill", [False, True])
def test_a_mask_of_one_kind_is_refused(fill):
    masks = np.stack([np.eye(4, dtype=bool), np.full((4, 4), fill)])
    with pytest.raises(ValueError, match="got mask 1 with"):
        visible_statistics(masks)
    with pytest.raises(ValueError, match="got mask 1 with"):
        mask_spectrum(masks)
    with pytest.raises(ValueError, match="got one value in all of map 0"):
        field_bands(np.ones((1, 4, 4)))


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the golden data")
def test_numbers_of_random_masks_are_the_published_ones():
    numbers = json.loads(GOLDEN.read_text())["numbers"]
    draws = np.random.default_rng(0).random((4000, 196))
    masks = (draws.argsort(axis=1).argsort(axis=1) < 49).reshape(-1, 14, 14)
    radius = np.rint(14 * frequencies(14, 14)).astype(int)
    assert np.bincount(radius.ravel())[1:].tolist() == numbers["coefficients_per_bin"]
    found, expected = visible_statistics(masks), numbers["presets"][0]["statistics_of_visible_patches"]
    ours = {
        "components_4": found.num_clusters,
        "largest_component": found.largest_cluster,
        "visible_neighbours_per_visible_patch": found.neighbours,
        "mean_distance_masked_to_visible": found.mean_distance,
        "max_distance_masked_to_visible": found.max_distance,
    }
    for name, values in ours.items():
        spread = expected[name]["std"] * np.sqrt(1 / 4000 + 1 / 1024)  # the stored numbers are of 1024 draws
        assert abs(values.mean() - expected[name]["mean"]) < 5 * spread, name
