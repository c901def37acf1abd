"""Small pictures as floats and as Pillow's, to compare arithmetic with Pillow's own."""

import numpy as np
import torch
from PIL import Image


def pictures(num=4, height=20, width=24, seed=0):
    """Noise and smooth ramps, 8-bit values as floats in [0, 1]."""
    values = torch.randint(0, 256, (num, 3, height, width), generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(0, 200, width)[None, None, None] * torch.tensor([1.0, 0.6, 0.2]).view(1, 3, 1, 1)
    values[::2] = (ramp + 20 * torch.linspace(0, 1, height)[:, None]).round().to(values.dtype)
    return values.float() / 255


def pillow(images):
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]


def floats(made):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in made])
