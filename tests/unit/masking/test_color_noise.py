import numpy as np
import pytest
import torch

from pantomim.analysis.masks import mask_spectrum
from pantomim.core.mask import Mask
from pantomim.masking.bank import write_bank
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.noise import PRESETS, Noise, make_bank

GRID, RATIO = (14, 14), 0.75
NOISES = {color: Noise(color, patterns=48, side=128) for color in PRESETS}


def draw(masker, batch_size, grid=GRID, seed=0):
    return masker(batch_size, grid, torch.Generator().manual_seed(seed))


def visible(color, shared_crop, windows):
    """Masks of several batches, as the sampler of the authors gives one place to all images of a round."""
    masker = ColorNoiseMasker(noise=NOISES[color], ratio=RATIO, shared_crop=shared_crop)
    batches = [~draw(masker, 96, seed=seed).masked for seed in range(-(-windows // 96))]
    return torch.cat(batches).unflatten(1, GRID).numpy()


# ------------------------------------------------------------------------------- Acceptance tests (spec, section 11.6)
def samplers(colors, shared):
    """Each colour with a place for each image, and one of them with places that images share."""
    return pytest.mark.parametrize(("color", "shared_crop"), [*((color, False) for color in colors), (shared, True)])


@samplers(PRESETS, "blue")
def test_every_mask_masks_147_patches(color, shared_crop) -> None:
    mask = draw(ColorNoiseMasker(noise=NOISES[color], ratio=RATIO, shared_crop=shared_crop), 1000)
    assert (mask.masked.sum(dim=1) == 147).all()
    assert mask.ids_keep.shape == (1000, 49)
    both = torch.cat([mask.ids_keep, mask.ids_mask], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(196).expand(1000, -1))
    assert mask.masked.gather(1, mask.ids_mask).all()
    assert mask.weight is None


@samplers(PRESETS, "green")
def test_masks_have_the_spectrum_that_the_name_promises(color, shared_crop) -> None:
    bins = np.concatenate(
        [[np.nan], mask_spectrum(visible(color, shared_crop, 5000)).mean(axis=0)]
    )  # bins[k], k = 1 ...
    if color == "white":
        assert np.abs(bins[1:] - 1).max() < 0.1
    elif color == "red":
        assert bins[1] > 8
        assert bins[6:].max() < 0.3
        assert (np.diff(bins[1:]) < 0).all()
    elif color == "blue":
        assert bins[1:4].max() < 0.7
        assert bins[7:].min() > 1.15
    elif color == "green":
        assert np.argmax(bins[1:]) + 1 in (2, 3)
        assert bins[1:].max() > 2.5
        assert bins[7:].max() < 0.5
    else:
        assert bins[1] > 1.8
        assert bins[3:6].max() < 0.75
        assert bins[9:].min() > 2


@samplers(PRESETS, "purple")
def test_flips_and_places_do_not_change_the_spectrum(color, shared_crop) -> None:
    """Windows side by side on a raster, none of them flipped, against those of the sampler."""
    bank = make_bank(NOISES[color])
    windows = torch.cat(
        [bank[:, top : top + 14, left : left + 14] for top in range(0, 114, 14) for left in range(0, 114, 14)]
    )
    fixed = ~Mask.from_scores(-windows.flatten(1), 147).masked.unflatten(1, GRID).numpy()
    drawn = mask_spectrum(visible(color, shared_crop, 6000)).mean(axis=0)
    np.testing.assert_allclose(drawn, mask_spectrum(fixed).mean(axis=0), rtol=0.1)


@pytest.mark.parametrize("color", PRESETS)
def test_no_two_images_of_a_batch_share_a_mask(color) -> None:
    masked = draw(ColorNoiseMasker(noise=NOISES[color]), 96).masked
    assert len({tuple(row.tolist()) for row in masked}) == 96


def test_images_of_a_round_share_place_and_flips(tmp_path) -> None:
    places = torch.arange(1.0, 40 * 30 + 1).view(40, 30)  # each value tells its place
    write_bank(tmp_path / "bank.npz", torch.stack([places * scale for scale in (1.0, 2.0, 3.0, 4.0, 5.0)]))
    masker = ColorNoiseMasker(bank=str(tmp_path / "bank.npz"), shared_crop=True)
    windows = masker.windows(13, (8, 6), torch.Generator().manual_seed(0))
    rounds = [windows[:5], windows[5:10], windows[10:]]
    for part in rounds:  # divided by their maximum, the patterns are the same
        torch.testing.assert_close(part, part[:1].expand_as(part))
    assert not torch.equal(rounds[0][0], rounds[1][0])
    assert (windows.amax(dim=(1, 2)) == 1).all()


@samplers(["white", "blue", "green"], "white")
def test_every_position_is_visible_equally_often(color, shared_crop) -> None:
    share = visible(color, shared_crop, 20_000).mean(axis=0)
    assert np.abs(share - 0.25).max() < 0.02


@pytest.mark.parametrize(
    ("color", "shared_crop", "corner", "centre"),
    [
        ("red", False, (0.28, 0.38), (0.08, 0.16)),
        ("purple", False, (0.26, 0.29), (0.22, 0.245)),
        ("purple", True, (0.26, 0.29), (0.22, 0.245)),
    ],
)
def test_patterns_as_large_as_the_window_show_corners_more_often(color, shared_crop, corner, centre) -> None:
    """What is highest within a window of a slow pattern lies at its border: so it is in the authors' masks too.

    Their shares (golden item colormae_spectra) go from 0.11 to 0.33 for red and from 0.226 to 0.272 for purple.
    """
    share = visible(color, shared_crop, 20_000).mean(axis=0)
    assert share.mean() == pytest.approx(0.25)
    assert centre[0] < share[6:8, 6:8].mean() < centre[1]
    assert corner[0] < share[[0, 0, -1, -1], [0, -1, 0, -1]].mean() < corner[1]


# ------------------------------------------------------------------------------------------------------- The sampler
def test_the_highest_values_stay_visible() -> None:
    masker = ColorNoiseMasker(noise=NOISES["green"])
    mask = draw(masker, 20)
    windows = masker.windows(20, GRID, torch.Generator().manual_seed(0)).flatten(1)
    shown, masked = windows.gather(1, mask.ids_keep), windows.gather(1, mask.ids_mask)
    assert (shown.amin(dim=1) > masked.amax(dim=1)).all()


@pytest.mark.parametrize("shared_crop", [False, True])
def test_a_negative_maximum_turns_the_order_around_for_shared_places_alone(tmp_path, shared_crop) -> None:
    bank = -torch.rand(4, 14, 14, generator=torch.Generator().manual_seed(0)) - 1
    write_bank(tmp_path / "bank.npz", bank)
    mask = draw(ColorNoiseMasker(bank=str(tmp_path / "bank.npz"), ratio=0.5, shared_crop=shared_crop), 1)
    shown = (~mask.masked).view(GRID)
    tops = [pattern > pattern.median() for pattern in bank]
    candidates = [turned for top in tops for flip in (top, top.flip(0)) for turned in (flip, flip.flip(1))]
    assert any(torch.equal(shown, ~top if shared_crop else top) for top in candidates)


def test_windows_are_pieces_of_the_bank(tmp_path) -> None:
    bank = torch.arange(3 * 20 * 18).view(3, 20, 18).float()
    write_bank(tmp_path / "bank.npz", bank)
    windows = ColorNoiseMasker(bank=str(tmp_path / "bank.npz")).windows(400, (5, 4), torch.Generator().manual_seed(0))
    steps = torch.stack([(windows[:, 1, 0] - windows[:, 0, 0]), (windows[:, 0, 1] - windows[:, 0, 0])], dim=1)
    assert set(map(tuple, steps.int().tolist())) == {(18, 1), (18, -1), (-18, 1), (-18, -1)}  # all four flips
    least = windows.amin(dim=(1, 2)).long()
    assert set((least // 360).tolist()) == {0, 1, 2}
    assert set((least % 360 // 18).tolist()) == set(range(16))  # the last row and column are reached
    assert set((least % 18).tolist()) == set(range(15))
    assert (windows.amax(dim=(1, 2)) - windows.amin(dim=(1, 2)) == 4 * 18 + 3).all()


@pytest.mark.parametrize(("ratio", "shown"), [(0.75, 49), (0.9, 19), (0.6, 78), (0.4, 117)])
def test_ratios_are_cut_as_in_the_code(ratio, shown) -> None:
    assert ColorNoiseMasker(noise=NOISES["red"], ratio=ratio).num_masked(GRID) == 196 - shown
    assert (draw(ColorNoiseMasker(noise=NOISES["red"], ratio=ratio), 5).masked.sum(dim=1) == 196 - shown).all()


@pytest.mark.parametrize("grid", [(8, 8), (3, 17), (24, 16), (1, 4)])
def test_any_grid(grid) -> None:
    mask = draw(ColorNoiseMasker(noise=NOISES["green"], ratio=0.6), 7, grid)
    assert mask.masked.shape == (7, grid[0] * grid[1])
    assert (mask.masked.sum(dim=1) == ColorNoiseMasker(ratio=0.6).num_masked(grid)).all()


def test_the_seed_decides() -> None:
    masker = ColorNoiseMasker(noise=NOISES["blue"])
    assert torch.equal(draw(masker, 8).masked, draw(masker, 8).masked)
    assert not torch.equal(draw(masker, 8).masked, draw(masker, 8, seed=1).masked)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_draws_on_the_device_of_the_batch() -> None:
    mask = ColorNoiseMasker(noise=NOISES["green"])(8, GRID, torch.Generator("cuda").manual_seed(0))
    assert mask.ids_keep.is_cuda
    assert (mask.masked.sum(dim=1) == 147).all()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\); got 75.0"):
        ColorNoiseMasker(ratio=75.0)
    for wrong in (ColorNoiseMasker(noise=NOISES["green"]), ColorNoiseMasker(bank="nowhere.npz")):
        with pytest.raises(ValueError, match=r"noise\.side must be at least|bank must be readable"):
            wrong.num_masked((130, 4))  # before anything is drawn
    with pytest.raises(ValueError, match=r"noise.side must be at least as large .* 128 x 128 .* 130 x 4"):
        draw(ColorNoiseMasker(noise=NOISES["green"]), 2, (130, 4))
    with pytest.raises(ValueError, match="bank must be readable"):
        draw(ColorNoiseMasker(bank="nowhere.npz"), 2)
