"""Weights for images of another size: tables of positions are resampled, everything else stays."""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.modes import initial_weights_unused
from pantomim.nn.relative import CLASS_ROWS
from pantomim.nn.vit import Encoder, EncoderConfig


def adapted_encoder(encoder: Encoder, to: EncoderConfig) -> Encoder:
    """An encoder for images of another size, or which it standardises otherwise; in evaluation mode."""
    with initial_weights_unused():
        adapted = to.build().to(next(encoder.parameters()))
    adapted.load_state_dict(adapt_encoder_weights(encoder.state_dict(), encoder.config, to)[0])
    adapted.scale = encoder.scale
    return adapted.eval()


def adapt_encoder_weights(
    weights: dict[str, Tensor], config: EncoderConfig, to: EncoderConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of an encoder for another one of the same sizes, and what was done, in words.

    Another grid: position tables are resampled; another patch size: the projection of patches is; other channels: see
    `adapt_channels`. A table of relative positions that all blocks shared is copied into each where each has its own.
    Tables of relative positions and layer scales that the weights lack are left out of what is returned: they keep
    their initial values (zero, or `to`'s).

    Source: BEiT's `run_class_finetuning.py` (copies); of patches FlexiViT's pseudo-inverse, arXiv:2212.08013, as in
        timm.
    """
    found, remarks = dict(weights), []
    if config.relative_position == "shared" and to.relative_position == "blocks":
        shared = found.pop("rel_pos_bias.relative_position_bias_table")
        found |= {f"blocks.{i}.attn.relative_position_bias_table": shared.clone() for i in range(config.depth)}
        remarks.append("the shared table of relative positions is copied into every block")
    for name, table in found.items():
        if name == "pos_embed" and config.grid != to.grid:
            stretched = to.resampling == "stretched"
            how = resample_stretched if stretched else partial(resample, antialias=to.resampling == "timm")
            found[name] = how(table, config.grid, to.grid, config.num_prefix)
        elif name.endswith("relative_position_bias_table"):
            degree = 1 if to.resampling == "timm" else 3
            found[name] = resize_relative_table(table, config.grid, to.grid, degree)
    if config.grid != to.grid and (config.position != "none" or config.relative_position != "none"):
        remarks.append(f"positions are resampled from {config.grid} to {to.grid}")
    if config.in_chans != to.in_chans:
        found["patch_embed.proj.weight"] = adapt_channels(found["patch_embed.proj.weight"], to.in_chans)
        remarks.append(channels_in_words(config.in_chans, to.in_chans))
    if config.patch_size != to.patch_size:
        from timm.layers import resample_patch_embed  # takes seconds, so only where it is needed

        side = (to.patch_size, to.patch_size)
        projection = found["patch_embed.proj.weight"]
        found["patch_embed.proj.weight"] = resample_patch_embed(projection.detach(), list(side)).to(projection.dtype)
        remarks.append(f"the projection of patches is resampled from {config.patch_size} to {to.patch_size} pixels")
    if config.relative_position == "none" != to.relative_position:
        remarks.append("relative positions are new, zero at first")
    if config.layer_scale is None and to.layer_scale is not None:
        remarks.append(f"layer scales are new, {to.layer_scale:g} at first")
    return found, remarks


def adapt_channels(kernel: Float[Tensor, "D C P P"], channels: int) -> Float[Tensor, "D {channels} P P"]:
    """A projection of patches for other channels: summed for one, and that shared by all where there are several.

    Equal channels keep their projection. Source: timm's `adapt_input_conv`, which for several repeats red, green and
    blue; deviation: other bands are none of these, so each is taken for brightness.
    """
    return kernel.sum(dim=1, keepdim=True).repeat(1, channels, 1, 1) / channels


def channels_in_words(there: int, here: int) -> str:
    """What `adapt_channels` does."""
    how = ", ".join(["summed"] * (there > 1) + ["repeated and rescaled"] * (here > 1))
    return f"the projection of patches is {how}: {here} channel(s) of {there}"


def resample(
    table: Float[Tensor, "1 T D"],
    grid: tuple[int, int],
    to: tuple[int, int],
    num_prefix: int,
    *,
    antialias: bool = False,
) -> Float[Tensor, "1 U D"]:
    """The patch rows of a position table for another grid (bicubic); prefix rows are kept.

    Source: the MAE authors' `util/pos_embed.py` (align_corners off, no antialiasing), any grid instead of a square;
        with antialiasing timm's `resample_abs_pos_embed`.
    """
    return _resample(table, grid, to, num_prefix, size=to, antialias=antialias)


def resample_stretched(
    table: Float[Tensor, "1 T D"], grid: tuple[int, int], to: tuple[int, int], num_prefix: int
) -> Float[Tensor, "1 U D"]:
    """`resample` by a factor instead of a size: a tenth of a patch is added, so that sampling positions move.

    Source: dBOT's `clip/model.py` (branch beit), which has it from DINO; there it keeps rounding from losing a row.
    """
    factors = ((to[0] + 0.1) / grid[0], (to[1] + 0.1) / grid[1])
    return _resample(table, grid, to, num_prefix, scale_factor=factors)


def _resample(table: Tensor, grid: tuple[int, int], to: tuple[int, int], num_prefix: int, **how: object) -> Tensor:
    if grid == to:
        return table
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    cells = patches.unflatten(1, grid).permute(0, 3, 1, 2)
    resized = F.interpolate(cells, mode="bicubic", align_corners=False, **how)  # type: ignore[arg-type]
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def resize_relative_table(
    table: Float[Tensor, "R heads"], grid: tuple[int, int], to: tuple[int, int], degree: int = 3
) -> Float[Tensor, "S heads"]:
    """A table of relative positions for another grid; near offsets keep their values, far ones are stretched.

    Along each axis the known offsets are laid out at growing distances, and a spline through them is read at the whole
    numbers; beyond the last one its value holds. Rows of the class token are kept.

    Source: BEiT's `run_class_finetuning.py`; linear in timm's `resize_rel_pos_bias_table`.
    Deviation: axis by axis, so for any grid, where theirs is square; fewer than four offsets are joined by a spline of
        lower degree; computed in float64, where theirs rounds to float32.
    """
    shape = (2 * grid[0] - 1, 2 * grid[1] - 1)
    kept = len(table) - shape[0] * shape[1]
    if kept not in (0, CLASS_ROWS):
        raise ValueError(
            f"resize_relative_table.table must have {shape[0] * shape[1]} rows for a grid of {grid[0]}x{grid[1]}, or "
            f"{CLASS_ROWS} more with a class token; got {len(table)}. Check the grid that the weights were trained on."
        )
    if grid == to:
        return table
    patches = table[: len(table) - kept].detach().cpu().double().numpy().reshape(*shape, -1)
    for axis, (side, new_side) in enumerate(zip(shape, (2 * to[0] - 1, 2 * to[1] - 1), strict=True)):
        if side == new_side:
            continue
        places = growing_offsets(side, new_side)
        if side == 1:  # a single offset has one value everywhere; a spline needs two points
            places, patches = np.array([-1.0, 1.0]), np.repeat(patches, 2, axis)
        from scipy.interpolate import make_interp_spline

        spline = make_interp_spline(places, patches, min(degree, len(places) - 1), axis=axis)
        offsets = np.arange(new_side) - new_side // 2
        patches = spline(offsets.clip(places[0], places[-1]))
    resized = torch.from_numpy(np.ascontiguousarray(patches)).flatten(0, 1).to(table)
    return torch.cat([resized, table[len(table) - kept :]])


def growing_offsets(side: int, to: int) -> np.ndarray:
    """Where `side` offsets lie among `to` whole ones: 0, 1, 1 + q, 1 + q + q^2 ... and the same below zero.

    The ratio q is the one for which the last falls on the last whole offset, found by bisection between 1.01 and 1.5.
    """
    reach = side // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1.0 - ratio**reach) / (1.0 - ratio) > to // 2:
            high = ratio
        else:
            low = ratio
    above = np.cumsum(ratio ** np.arange(reach))
    return np.concatenate([-above[::-1], [0.0], above])
