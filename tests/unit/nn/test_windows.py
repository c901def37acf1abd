import pytest
import torch
from torch import nn

from pantomim.nn.windows import sliding_logits, window_starts

MEAN = torch.tensor([0.2, 0.4, 0.6])


def images(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def by_pixel(seen):
    return torch.stack([seen.sum(dim=1), seen[:, 0] - seen[:, 2]], dim=1)


@pytest.mark.parametrize("stride", [1, 5, 11, 16])
@pytest.mark.parametrize("side", [16, 17, 27, 28, 100])
def test_windows_cover_a_side_and_stay_inside(side, stride):
    starts = window_starts(side, 16, stride)
    assert {pixel for start in starts for pixel in range(start, start + 16)} == set(range(side))
    assert starts[:-1] == list(range(0, stride * (len(starts) - 1), stride))
    assert len(starts) == 1 or starts[-1] - starts[-2] <= stride


def test_a_shorter_side_is_one_window():
    assert window_starts(9, 16, 11) == [0]


@pytest.mark.parametrize("fill", [None, MEAN])
@pytest.mark.parametrize("size", [(16, 16), (40, 23), (9, 30), (5, 7)])
def test_what_a_model_tells_pixel_by_pixel_does_not_depend_on_windows(size, fill):
    given = images(*size)
    found = sliding_logits(by_pixel, given, 2, (16, 16), (11, 11), fill)
    torch.testing.assert_close(found, by_pixel(given))


def test_logits_are_averaged_where_windows_overlap():
    numbers = iter((1.0, 4.0))
    found = sliding_logits(lambda seen: seen[:, :1] * 0 + next(numbers), images(4, 6), 1, (4, 4), (4, 3), None)
    assert found[0, 0, 0].tolist() == [1, 1, 2.5, 2.5, 4, 4]


def test_logits_of_another_resolution_are_enlarged_window_by_window():
    model = nn.Conv2d(3, 2, kernel_size=4, stride=4)
    given = images(8, 12)
    found = sliding_logits(model, given, 2, (8, 8), (8, 4), None)
    left = nn.functional.interpolate(model(given[..., :8]), (8, 8), mode="bilinear")
    torch.testing.assert_close(found[..., :4], left[..., :4])


def test_small_images_are_continued_in_the_mean_colour_and_cut_again():
    seen = []
    given = images(5, 20)
    found = sliding_logits(lambda x: seen.append(x) or x[:, :2], given, 2, (16, 16), (11, 11), MEAN)
    assert [tuple(x.shape[2:]) for x in seen] == [(16, 16), (16, 16)]
    assert (seen[0][:, :, 5:] == MEAN.view(1, 3, 1, 1)).all()
    assert torch.equal(seen[0][:, :, :5], given[..., :16])
    assert found.shape == (2, 2, 5, 20)
    sliding_logits(lambda x: seen.append(x) or x[:, :2], given, 2, (16, 16), (11, 11), None)
    assert [tuple(x.shape[2:]) for x in seen[2:]] == [(5, 16), (5, 16)], "a model of any size sees the image alone"


@pytest.mark.parametrize("stride", [(0, 4), (4, 17)])
def test_windows_that_leave_gaps(stride):
    with pytest.raises(ValueError, match=r"stride must be at least 1 and at most the crop of 16 x 16"):
        sliding_logits(by_pixel, images(20, 20), 2, (16, 16), stride, None)
