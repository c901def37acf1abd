"""Images as people have them in memory: of any number type, in NumPy or torch; the answer is right, or an error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ENCODER

from pantomim.core.scales import BYTES, Scale, scale_of
from pantomim.nn.resize import adapt_channels
from pantomim.nn.vit import Encoder

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8)


def encoder(scale: Scale | None, dtype: torch.dtype = torch.float32) -> Encoder:
    torch.manual_seed(0)
    made = replace(ENCODER, depth=1).build().to(dtype).eval()
    made.scale = scale
    return made


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("is_array", [False, True])
def test_the_same_pixels_have_the_same_features(dtype: type, weights: torch.dtype, count: int, is_array: bool) -> None:
    network = encoder(BYTES, weights)
    images = PIXELS[:count] if dtype is np.uint8 else PIXELS[:count].astype(dtype) / dtype(255)
    with torch.no_grad():
        expected = network(torch.from_numpy(PIXELS[:count]).to(weights) / 255)
        found = network(images if is_array else torch.from_numpy(images))
    assert found.patches.dtype == weights
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bool", "uint16", "int16", "int32", "int64"])
@pytest.mark.parametrize("scale", [BYTES, None], ids=["bytes", "unknown"])
def test_whole_numbers_of_another_rule_are_refused(dtype: str, scale: Scale | None) -> None:
    with pytest.raises(ValueError, match=r"Encoder\.images must be scaled as in training.*Divide them"):
        encoder(scale)(PIXELS.astype(dtype))


def test_a_given_scale_is_that_of_all_whole_numbers() -> None:
    network = encoder(scale_of("uint16", 4095))
    found, expected = network(PIXELS.astype(np.int32)), network(PIXELS.astype(np.float32) / 4095)
    torch.testing.assert_close(found.patches, expected.patches)


@pytest.mark.parametrize("images", [PIXELS[:, :2], PIXELS.transpose(0, 2, 3, 1)])
def test_images_of_another_shape_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"Encoder\.images must be \(B, 3, 16, 16\), channels first"):
        encoder(BYTES)(images)


@pytest.mark.parametrize(("there", "channels"), [(3, 1), (5, 1), (1, 3), (1, 8), (3, 5), (4, 3)])
def test_a_projection_keeps_its_answer_to_equal_channels(there: int, channels: int) -> None:
    kernel = torch.rand(2, there, 4, 4).mean(dim=1, keepdim=True).expand(-1, there, -1, -1)
    adapted = adapt_channels(kernel, channels)
    assert adapted.shape == (2, channels, 4, 4)
    torch.testing.assert_close(adapted.sum(dim=1), kernel.sum(dim=1))
