import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torchvision.transforms import RandomResizedCrop, v2

from pantomim.core.scales import Scale, scale_of
from pantomim.data.transforms import (
    Crop,
    centred_boxes,
    crop_boxes,
    draw_uniforms,
    fitted_size,
    nearest_pixels,
    resize_one,
    resized_crop,
    scaled,
)


@pytest.mark.parametrize("image_size", [(16, 16), (24, 40), (9, 5), (64, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resized_crop_equals_torchvision_image_by_image(image_size, dtype, interpolation):
    images = torch.rand(6, 3, 30, 44, generator=torch.Generator().manual_seed(0), dtype=dtype)
    boxes = torch.tensor(
        [[0, 0, 30, 44], [3, 5, 20, 31], [10, 0, 4, 44], [29, 43, 1, 1], [0, 7, 30, 2], [5, 5, *image_size]]
    )
    boxes[5] = boxes[5].minimum(torch.tensor([5, 5, 25, 39]))
    flips = torch.tensor([False, True, False, True, True, False])
    ours = resized_crop(images, boxes, image_size, flips, interpolation)
    assert ours.dtype == dtype
    for image, box, flip, row in zip(images, boxes, flips, ours, strict=True):
        theirs = v2.functional.resized_crop(
            image,
            *box.tolist(),
            size=list(image_size),
            interpolation=v2.InterpolationMode(interpolation),
            antialias=True,
        )
        torch.testing.assert_close(
            row, theirs.flip(2) if flip else theirs, rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-12
        )


def test_resized_crop_of_the_whole_image_is_that_image():
    images = torch.rand(2, 7, 12, 8)
    whole = torch.tensor([[0, 0, 12, 8]]).expand(2, 4)
    torch.testing.assert_close(resized_crop(images, whole, (12, 8)), images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_one_equals_the_batched_resize(interpolation):
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 30), dtype=np.uint8)
    box = np.array([4, 2, 30, 25])
    one = resize_one(image, box, (16, 16), True, interpolation)
    batched = resized_crop(
        torch.from_numpy(image)[None].float(),
        torch.from_numpy(box)[None],
        (16, 16),
        torch.tensor([True]),
        interpolation,
    )
    assert one.dtype == torch.uint8
    assert (one.float() - batched[0].clamp(0, 255)).abs().max() <= 2  # rounded to 8 bits after rows and after columns
    exact = resize_one(image.astype(np.int16), box, (16, 16), True, interpolation)
    torch.testing.assert_close(exact, batched[0], rtol=0, atol=1e-3)


def test_a_box_of_the_target_size_is_cut_out_untouched():
    image = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6)
    part = resize_one(image, np.array([1, 2, 4, 3]), (4, 3), flip=False)
    np.testing.assert_array_equal(part.numpy(), image[:, 1:5, 2:5])


def test_boxes_lie_inside_and_within_the_allowed_shares():
    sizes = np.random.default_rng(0).integers(20, 300, (4000, 2))
    boxes, flips = crop_boxes(sizes, draw_uniforms(4000, 0, 0), Crop(), (224, 224))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    roomy = (sizes.max(1) / sizes.min(1) < 1.3) & (sizes.min(1) > 60)
    share = boxes[roomy, 2] * boxes[roomy, 3] / sizes[roomy].prod(axis=1)
    aspect = boxes[roomy, 3] / boxes[roomy, 2]
    assert 0.19 < share.min() < 0.25
    assert share.max() > 0.9
    assert 0.72 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.37
    assert 0.46 < flips.mean() < 0.54


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    image = torch.empty(3, 60, 90)
    drawn = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    theirs = np.array(drawn)
    ours, _ = crop_boxes(np.tile([60, 90], (3000, 1)), draw_uniforms(3000, 0, 0), Crop(), (32, 32))
    for column in range(4):
        assert scipy_stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_draws_depend_on_seed_and_step_alone():
    np.testing.assert_array_equal(draw_uniforms(8, 1, 2), draw_uniforms(8, 1, 2))
    assert not np.array_equal(draw_uniforms(8, 1, 2), draw_uniforms(8, 1, 3))
    assert not np.array_equal(draw_uniforms(8, 1, 2), draw_uniforms(8, 2, 2))


def test_no_flip_and_no_crop_can_be_asked_for():
    sizes = np.array([[32, 32], [20, 40]])
    boxes, flips = crop_boxes(sizes, draw_uniforms(2, 0, 0), Crop(kind="none", flip=False), (16, 16))
    assert boxes.tolist() == [[0, 0, 32, 32], [0, 10, 20, 20]]
    assert not flips.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (2, 3)])
def test_tiny_images_have_boxes_too(size):
    boxes, _ = crop_boxes(np.tile(size, (50, 1)), draw_uniforms(50, 0, 0), Crop(), (8, 8))
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array(size)).all()
    assert resize_one(np.zeros((3, *size), np.uint8), boxes[0], (8, 8), flip=False).shape == (3, 8, 8)


def test_centred_boxes_have_the_target_proportions():
    assert centred_boxes(np.array([[100, 60], [60, 100], [50, 100]]), (50, 100)).tolist() == [
        [35, 0, 30, 60],
        [5, 0, 50, 100],
        [0, 0, 50, 100],
    ]


@pytest.mark.parametrize(("field", "value"), [("scale", (0.0, 1.0)), ("scale", (0.5, 0.2)), ("aspect", (2.0, 1.0))])
def test_impossible_crops_are_refused(field, value):
    with pytest.raises(ValueError, match=f"Crop.{field} must be"):
        Crop(**{field: value})


def test_scaling_clips_nothing():
    values = torch.tensor([-500, 0, 12000], dtype=torch.int16)
    torch.testing.assert_close(scaled(values, scale_of("int16")), torch.tensor([-0.05, 0.0, 1.2]))
    deep = torch.from_numpy(np.array([0, 65535], dtype=np.uint16))
    torch.testing.assert_close(scaled(deep, scale_of("uint16")), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(scaled(torch.tensor([2.0]), Scale(4.0)), torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"Scale.divisor must be above 0"):
        Scale(0.0)


@pytest.mark.parametrize(
    ("size", "sides", "fitted"),
    [
        ((683, 512), (2048, 512), (683, 512)),  # these are mmcv's, for segmentation
        ((683, 512), (1024, 256), (342, 256)),
        ((512, 683), (2805, 701), (701, 935)),
        ((1080, 1920), (2048, 512), (512, 910)),
        ((1080, 1920), (1333, 800), (750, 1333)),  # and for detection
        ((300, 1300), (1024, 256), (236, 1024)),  # longer than four to one
        ((1, 500), (50, 50), (1, 50)),
    ],
)
def test_the_longer_and_the_shorter_side_both_allow_a_size(size, sides, fitted):
    assert fitted_size(size, *sides) == fitted
    assert fitted_size(size[::-1], *sides) == fitted[::-1]


def test_nearest_pixels_are_those_at_the_same_centres():
    assert nearest_pixels(4, 4).tolist() == [0, 1, 2, 3]
    assert nearest_pixels(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert nearest_pixels(6, 2).tolist() == [1, 4]
    line = torch.arange(37.0)[None, None]
    for count in range(1, 90):
        exact = torch.nn.functional.interpolate(line, size=count, mode="nearest-exact")
        assert nearest_pixels(37, count).tolist() == exact.flatten().tolist()
