import numpy as np
import pytest

from pantomim.core.scales import Scale, scale_of
from pantomim.data.pictures import shown_bands, to_photo, to_picture


@pytest.mark.parametrize(("channels", "expected"), [(1, [0]), (2, [0]), (3, [0, 1, 2]), (12, [0, 1, 2])])
def test_bands_by_default(channels, expected):
    assert shown_bands(channels) == expected


def test_the_range_of_pictures_is_robust_and_never_empty():
    values = np.linspace(0.0, 1.0, 10_000).reshape(1, 1, 100, 100)
    values[0, 0, 0, 0], values[0, 0, 99, 99] = -1000.0, 1000.0
    stretched = to_picture(np.array([0.0, 0.05, 0.5, 0.95, 1.0]).reshape(5, 1, 1, 1), values, Scale(10_000.0)).ravel()
    assert stretched[[0, 4]].tolist() == [0, 255]
    assert (np.diff(stretched.astype(int)) > 0).all()
    assert abs(to_picture(values, values, Scale(255.0))[0, 50, 0, 0] - 255 * 0.5) < 1
    constant = np.full((1, 1, 2, 2), 0.3)
    assert to_picture(constant, constant, Scale(1.0)).max() == 0


def test_one_image_as_a_photo():
    rng = np.random.default_rng(0)
    colour, gray = (rng.integers(0, 256, (channels, 5, 6), dtype=np.uint8) for channels in (3, 1))
    assert (to_photo(colour, scale_of("uint8")) == colour).all()
    assert (to_photo(gray, scale_of("uint8")) == np.repeat(gray, 3, axis=0)).all()
    reflectances = rng.integers(100, 900, (7, 5, 6), dtype=np.int16)
    photo = to_photo(reflectances, scale_of("int16"))
    assert (photo.shape, photo.dtype, photo.min(), photo.max()) == ((3, 5, 6), np.uint8, 0, 255)
    assert (np.diff(photo[2].ravel()[reflectances[2].ravel().argsort()].astype(int)) >= 0).all()
