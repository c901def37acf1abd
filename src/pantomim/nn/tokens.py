"""Pure functions between images, patches and tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.scales import scale_of

AnyImages = Shaped[Tensor, "B C H W"] | Shaped[np.ndarray, "B C H W"]  # images: scaled, or whole numbers as stored


def take(tokens: Shaped[Tensor, "B N *D"], ids: Int[Tensor, "B K"]) -> Shaped[Tensor, "B K *D"]:
    """The tokens with the given ids, image by image; a token is a vector, or a single number."""
    if tokens.ndim == 2:
        return tokens.gather(1, ids)
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def put_back(
    visible: Float[Tensor, "B V D"], ids_keep: Int[Tensor, "B V"], filled: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N D"]:
    """`filled` with the visible tokens written at their places."""
    return filled.scatter(1, ids_keep.unsqueeze(-1).expand(-1, -1, visible.shape[-1]), visible)


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    for side in image_size:
        if side < patch_size or side % patch_size:
            rule = "at least patch_size" if side < patch_size else "a multiple of patch_size"
            rows, cols = (max(round(size / patch_size), 1) * patch_size for size in image_size)
            raise ValueError(
                f"image_size must be {rule}; got {image_size[0]}x{image_size[1]} with patch_size {patch_size}. "
                f"Set image_size to {rows} {cols}, to which images are resized, or use a patch_size that divides both."
            )
    return image_size[0] // patch_size, image_size[1] // patch_size


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B N K"]:
    """Cut images into patches of K = P*P*C values: row in patch, column in patch, channel (fastest).

    Paper: He et al. 2022, section 3; element order as in the authors' `models_mae.py`.
    """
    batch, channels, height, width = images.shape
    rows, cols = patch_grid((height, width), patch_size)
    cells = images.reshape(batch, channels, rows, patch_size, cols, patch_size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * cols, patch_size * patch_size * channels)


def unpatchify(patches: Float[Tensor, "B N K"], patch_size: int, grid: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The inverse of `patchify`."""
    batch, (rows, cols) = len(patches), grid
    cells = patches.reshape(batch, rows, cols, patch_size, patch_size, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, cols * patch_size)


def as_map(patches: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B D h w"]:
    """Vectors of patches at their places."""
    return patches.mT.unflatten(-1, grid)


def enlarge(maps: Float[Tensor, "B K h w"], size: Sequence[int]) -> Float[Tensor, "B K H W"]:
    """Maps, most often logits, at another size: bilinear, with corners where pixels end, not in their middle."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def standardise(
    images: Float[Tensor, "B C H W"], mean: Float[Tensor, " C"], std: Float[Tensor, " C"]
) -> Float[Tensor, "B C H W"]:
    """Subtract the mean and divide by the std, channel by channel."""
    return (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def normalised(network: Any, images: AnyImages, dtype: torch.dtype) -> Float[Tensor, "B C H W"]:
    """Images as the first layer of a network takes them, whose weights have this type.

    Whole numbers are scaled by the rule of its training; a ValueError where that is not the one of their number type.
    """
    owner, expected = type(network).__name__, (network.in_chans, *network.image_size)
    values = images if isinstance(images, Tensor) else torch.as_tensor(images, device=network.mean.device)
    if values.shape[1:] != expected:
        raise ValueError(
            f"{owner}.images must be (B, {', '.join(map(str, expected))}), channels first; got "
            f"{tuple(values.shape)}. Resize the images, or build the encoder for this size and these channels."
        )
    if not values.is_floating_point():
        stored = scale_of(str(values.dtype).removeprefix("torch."))
        if network.scale is None or (network.scale.divisor != stored.divisor and not network.scale.given):
            trained = "is not known" if network.scale is None else f"is {network.scale.rule}"
            raise ValueError(
                f"{owner}.images must be scaled as in training, whose rule {trained}; got whole numbers of another "
                f"({stored.rule}). Divide them by the value that is to become 1."
            )
        values = values.to(network.mean.dtype) / network.scale.divisor
    return standardise(values, network.mean, network.std).to(dtype)


def token_statistics(
    tokens: Float[Tensor, "*B K"], *, unbiased: bool, eps: float
) -> tuple[Float[Tensor, "*B 1"], Float[Tensor, "*B 1"]]:
    """Mean and std of each token over its channels; `eps` is added to the variance, inside the root."""
    variance = tokens.var(dim=-1, keepdim=True, correction=int(unbiased))
    return tokens.mean(dim=-1, keepdim=True), (variance + eps).sqrt()


def normalise_tokens(tokens: Float[Tensor, "*B K"], *, unbiased: bool, eps: float) -> Float[Tensor, "*B K"]:
    """Subtract each token's mean and divide by its std: a layer norm without weights, if not `unbiased`."""
    mean, std = token_statistics(tokens, unbiased=unbiased, eps=eps)
    return (tokens - mean) / std


def channel_values(owner: str, values: tuple[float, ...], in_chans: int) -> Tensor:
    """Per-channel constants as a float64-exact tensor."""
    if len(values) != in_chans:
        raise ValueError(
            f"{owner} must have one value per channel; got {len(values)} for {in_chans} channels. "
            f"`pantomim stats SRC` prints the values of a data set."
        )
    # Written into a tensor: fake ones (`explain`) keep a single number as a constant, which cannot be deep-copied.
    return torch.empty(in_chans).copy_(torch.tensor(values))
