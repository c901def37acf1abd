import pytest

from pantomim.core.sizes import fitted_size


@pytest.mark.parametrize("size", [(683, 512), (300, 1100), (64, 64), (7, 2000)])
def test_an_image_fills_the_box_as_far_as_its_shape_allows(size):
    found = fitted_size(size, 2048, 512)
    assert max(found) <= 2048
    assert min(found) <= 512
    assert max(found) == 2048 or min(found) == 512
    assert fitted_size(size[::-1], 2048, 512) == found[::-1]
