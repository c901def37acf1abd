"""CLIP's image tower, as teacher of features and of masks."""

from typing import Any

import torch

from pantomim.formats.clip import clip_encoder
from pantomim.formats.timm import attention_rows, model_table
from pantomim.nn.vit import EncoderConfig
from pantomim.parity.item import RELATIVE, Computed, Item, distance
from pantomim.teachers.base import Guidance
from pantomim.teachers.fitting import fit_wrapped
from pantomim.teachers.wrapped import WrappedTeacher


@torch.no_grad()
def visual(item: Item) -> Computed:
    """The tower from its own weights: at its own size, and at one whose positions are resampled."""
    config, images = item.config, item.input("images")
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # the item's images are normalised already
    encoder = clip_encoder(item.weights(), item.name, activation="quick_gelu", heads=config["heads"], **plain)
    block, norm, projection = (
        _joined(WrappedTeacher(encoder, output=output)(images)) for output in ("block", "norm", "projection")
    )
    of_class, of_patches = (WrappedTeacher(encoder)(images, query).attention for query in ("class", "mean"))
    assert of_class is not None
    assert of_patches is not None
    before_last, _ = encoder.last_blocks(images, 2).tokens
    blocks: Any = encoder.model.blocks
    full = attention_rows(blocks[-1], before_last, slice(None)).mean(dim=1)
    class_normed = torch.cat([norm[:, :1], block[:, 1:]], dim=1)
    found = Computed(
        {
            "image_embedding": projection[:, 0],
            "tokens_before_ln_post": block,
            "tokens_after_ln_post": norm,
            "tokens_projected": projection,
            "tokens_projected_without_patch_norm": encoder.project(class_normed),
            "last_block_attention_mean_over_heads": full,
            "cls_attention": of_class,
        },
        config={
            "layer_norm_eps": encoder.model.norm.eps,  # type: ignore[union-attr]
            "layers": encoder.num_blocks,
            "output_dim": encoder.projected,
        },
    )
    found.errors["attention of the mean over patches"] = distance(of_patches, full[:, 1:, 1:].mean(dim=1)) / RELATIVE
    if item.has("images_other_size"):
        larger = EncoderConfig(image_size=(config["other_resolution"],) * 2, patch_size=config["patch_size"])
        fitted = fit_wrapped(encoder, larger)
        elsewhere = WrappedTeacher(fitted, output="projection")(item.input("images_other_size"))
        found.outputs["tokens_projected_other_size"] = _joined(elsewhere)
        found.outputs["positions_other_size"] = model_table(fitted.model)[0]
    return found


def _joined(guidance: Guidance) -> torch.Tensor:
    return torch.cat([guidance.prefix, guidance.patches], dim=1)


ITEMS = {"clip_visual": visual}
