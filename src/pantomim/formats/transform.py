"""From pictures to what an encoder takes; evaluation resizes as this does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pantomim.core.scales import Scale, scale_of
from pantomim.data.decoding import from_picture
from pantomim.data.transforms import centred_boxes, resize_one, scaled
from pantomim.nn.vit import Interpolation

Picture = Image.Image | np.ndarray  # an array is (C, H, W), values as they are stored


@dataclass(frozen=True)
class Transform:
    """Cuts each picture's largest centred part, resizes it to `margin` times the image size, scales its centre."""

    image_size: tuple[int, int]
    channels: int
    scale: Scale | None  # of the training; None: not known
    interpolation: Interpolation
    margin: float = 1.0

    @classmethod
    def of(cls, encoder: Any, interpolation: Interpolation | None = None, margin: float = 1.0) -> Self:
        """That of an encoder's training, bicubic where it is not known how images were resized."""
        resized = interpolation or encoder.interpolation or "bicubic"
        return cls(tuple(encoder.image_size), encoder.in_chans, encoder.scale, resized, margin)

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width before the centre is taken."""
        return int(self.image_size[0] * self.margin + 1e-6), int(self.image_size[1] * self.margin + 1e-6)

    @property
    def divisor(self) -> float:
        """The stored value that becomes 1."""
        return 1.0 if self.scale is None else self.scale.divisor

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Float[Tensor, "B C h w"]:
        """Of one picture a batch of one."""
        if isinstance(pictures, str | Path):
            raise ValueError(f"Transform.pictures must be pictures; got a path, {pictures}. Open it: Image.open(path).")
        several = [pictures] if isinstance(pictures, Image.Image | np.ndarray) else pictures
        return torch.stack([self._one(picture) for picture in several])

    def _one(self, picture: Picture) -> Float[Tensor, "C h w"]:
        if isinstance(picture, Image.Image):
            gray = self.channels == 1 and picture.mode in ("RGB", "P")
            image = np.require(from_picture(picture.convert("L") if gray else picture), requirements="W")
        else:
            image = picture
        if len(image) == 1 and self.channels == 3:
            image = np.repeat(image, 3, axis=0)
        if image.ndim != 3 or len(image) != self.channels:
            raise ValueError(
                f"Transform.pictures must have {self.channels} channel(s); got an image of shape {image.shape}. "
                f"Convert it, or give an array (C, H, W)."
            )
        stored = scale_of(image.dtype.name)
        scale = self.scale or stored
        if image.dtype.kind in "iu" and scale.divisor != stored.divisor and not scale.given:
            raise ValueError(
                f"Transform.pictures must be stored as in training ({scale.rule}); got {image.dtype.name}. Convert "
                f"them."
            )
        box = centred_boxes(np.asarray([image.shape[1:]]), self.image_size)[0]
        whole = scaled(resize_one(image, box, self.resized, flip=False, interpolation=self.interpolation), scale)
        top, left = ((side - size) // 2 for side, size in zip(self.resized, self.image_size, strict=True))
        return whole[:, top : top + self.image_size[0], left : left + self.image_size[1]]
