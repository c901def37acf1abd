import colorsys

import numpy as np
import pytest

from pantomim.data.distortion import Distortion, distorted, to_hsv, to_rgb


class Drawn:
    """Given numbers, in order."""

    def __init__(self, *values):
        self.rest = list(values)

    def integers(self, low, high):
        assert low <= self.rest[0] < high
        return self.rest.pop(0)

    def uniform(self, low, high):
        assert low <= self.rest[0] <= high
        return self.rest.pop(0)


def photo(shape=(3, 40, 50), seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def test_hsv_is_that_of_the_textbook():
    image = photo()
    hue, saturation, value = to_hsv(image).reshape(3, -1).astype(float)
    exact = np.array([colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in image.reshape(3, -1).T])
    assert np.abs((hue / 180 - exact[:, 0] + 0.5) % 1 - 0.5).max() <= 0.7 / 180
    assert np.abs(saturation - 255 * exact[:, 1]).max() <= 0.7
    assert (value == image.max(axis=0).reshape(-1)).all()
    back = to_rgb(to_hsv(image)).astype(int)
    assert np.abs(back - image).max() <= 5, "8-bit hue: two degrees"
    assert to_hsv(np.full((3, 1, 1), 77, np.uint8)).ravel().tolist() == [0, 0, 77]


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ((0, 0, 0, 0, 0), [10, 100, 250]),
        ((1, 20.7, 0, 0, 0, 0), [30, 120, 255]),  # cut to whole levels, clipped
        ((1, -20.7, 0, 0, 0, 0), [0, 79, 229]),
        ((0, 1, 1, 0.55, 0, 0), [5, 55, 137]),
        ((0, 0, 0, 0, 1, 1.5), [15, 150, 255]),
        ((1, 20.0, 1, 1, 0.5, 0, 0), [15, 60, 127]),  # brightness first: 270 is 255 by then
        ((0, 0, 1, 0.5, 0, 0), [130, 174, 250]),
        ((0, 0, 1, 0.5, 1, 0, 0), [130, 174, 250]),  # a turn by nothing
    ],
)
def test_each_step_is_clipped_and_cut(draws, expected):
    random = Drawn(*draws)
    image = np.array([10, 100, 250], np.uint8)[:, None, None]
    assert distorted(image, Distortion(), random).ravel().tolist() == expected
    assert not random.rest


def test_hues_turn_round():
    reds = np.array([200, 0, 40], np.uint8)[:, None, None]  # hue 174 of 180
    turned = distorted(reds, Distortion(), Drawn(0, 0, 0, 1, 12, 0))
    assert to_hsv(turned).ravel().tolist() == [6, 255, 200]


@pytest.mark.parametrize(("channels", "dtype"), [(7, np.int16), (3, np.float32), (1, np.uint8), (4, np.uint8)])
def test_other_than_photos_have_brightness_and_contrast_alone(channels, dtype):
    image = photo((channels, 4, 5), dtype=dtype)
    moved = distorted(image, Distortion(), Drawn(1, -25.5, 1, 1, 0.5), divisor=1000.0)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, (image.astype(np.float32) - 100) * 0.5, rtol=1e-6)
    kept = distorted(image, Distortion(), Drawn(0, 0, 0), divisor=1000.0)
    assert kept.dtype == np.float32
    assert (kept == image).all()


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"Distortion.contrast must be two rising factors; got \(2.0, 1.0\)"):
        Distortion(contrast=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"Distortion.hue must be at least 0"):
        Distortion(hue=-1)


def test_a_hue_of_zero_turns_nothing():
    image = photo()
    for seed in range(8):
        distorted(image, Distortion(hue=0), np.random.default_rng(seed), 255)
