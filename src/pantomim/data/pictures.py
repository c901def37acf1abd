"""Images of any number and range of bands as 8-bit pictures."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from pantomim.core.scales import Scale

STRETCH = (2.0, 98.0)  # percentiles of the originals that become black and white where values are not 8-bit


def shown_bands(channels: int) -> list[int]:
    """The bands to show: the first three as red, green and blue, or the first as gray."""
    return [0, 1, 2] if channels >= 3 else [0]


def to_picture(
    values: Float[np.ndarray, "B C H W"], originals: Float[np.ndarray, "n C H W"], scale: Scale
) -> UInt8[np.ndarray, "B H W c"]:
    """8-bit pictures of the range 0 to 1 for 8-bit images, else of robust ends of the originals, band by band."""
    bands = shown_bands(values.shape[1])
    low, high = np.zeros(len(bands)), np.ones(len(bands))
    if scale.divisor != 255.0:
        low, high = np.percentile(originals[:, bands], STRETCH, axis=(0, 2, 3))
        high = np.where(high > low, high, low + 1.0)
    stretched = (values[:, bands] - low[:, None, None]) / (high - low)[:, None, None]
    return (stretched.clip(0.0, 1.0) * 255.0).round().astype(np.uint8).transpose(0, 2, 3, 1)


def to_photo(image: Shaped[np.ndarray, "C H W"], scale: Scale) -> UInt8[np.ndarray, "3 H W"]:
    """One image, values as they are stored, in red, green and blue; where it is stretched, by its own values."""
    values = image[None] / scale.divisor
    picture = to_picture(values, values, scale)[0].transpose(2, 0, 1)
    return np.repeat(picture, 3 // len(picture), axis=0)
