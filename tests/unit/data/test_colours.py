"""Colours are changed as Pillow and torchvision change them, each image by its amount."""

import numpy as np
import pytest
import torch
from pictures import floats, pictures, pillow
from PIL import ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional as tv

from pantomim.data.colours import blurred, brightened, contrasted, gray, saturated, solarised, turned


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (brightened, ImageEnhance.Brightness),
        (contrasted, ImageEnhance.Contrast),
        (saturated, ImageEnhance.Color),
    ],
)
def test_factors_are_pillows_with_one_for_each_image(ours, theirs):
    images, factors = pictures(), [0.4, 1.0, 1.7, 0.0]
    expected = floats([theirs(image).enhance(by) for image, by in zip(pillow(images), factors, strict=True)])
    made = ours(images, torch.tensor(factors))
    assert (made - expected).abs().max() <= 2.01 / 255  # Pillow rounds the gray and the result


def test_hues_are_torchvisions():
    images = pictures()
    shares = [0.5, -0.1, 0.3, -0.5]
    expected = torch.stack([tv.adjust_hue(image, by) for image, by in zip(images, shares, strict=True)])
    torch.testing.assert_close(turned(images, torch.tensor(shares)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(images, torch.zeros(4)), images, atol=1e-6, rtol=0)


def test_gray_is_pillows_and_the_mean_of_other_channels():
    images = pictures()
    expected = torch.stack([torch.from_numpy(np.array(image.convert("L"))) for image in pillow(images)])
    assert (gray(images)[:, 0] - expected / 255).abs().max() <= 1 / 255
    other = torch.rand(2, 5, 4, 4)
    assert torch.equal(gray(other), other.mean(dim=1, keepdim=True))


def test_solarised_is_pillows():
    images = pictures()
    expected = floats([ImageOps.solarize(image, 128) for image in pillow(images)])
    torch.testing.assert_close(solarised(images), expected, atol=1e-6, rtol=0)


def test_blur_is_a_gaussian_of_each_images_std():
    images, sigmas = pictures(height=40, width=40), torch.tensor([0.1, 0.7, 2.0, 1.3])
    made = blurred(images, sigmas)
    for image, sigma, blurry in zip(images, sigmas.tolist(), made, strict=True):
        expected = tv.gaussian_blur(image, [21, 21], [sigma, sigma])
        torch.testing.assert_close(blurry[:, 11:-11, 11:-11], expected[:, 11:-11, 11:-11], atol=1e-4, rtol=0)
    theirs = floats([pillow(images)[0].filter(ImageFilter.GaussianBlur(0.1))])
    torch.testing.assert_close(made[:1], theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        blurred(torch.full((1, 1, 9, 9), 0.3), torch.tensor([2.0])), torch.full((1, 1, 9, 9), 0.3)
    )
