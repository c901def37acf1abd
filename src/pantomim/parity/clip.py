"""CLIP's image tower, as teacher of features and of masks."""

from typing import Any

import torch
from torch import Tensor

from pantomim.formats.clip import clip_encoder
from pantomim.formats.timm import attention_rows
from pantomim.nn.vit import EncoderConfig
from pantomim.parity.compare import RELATIVE, distance
from pantomim.parity.item import Computed, Item
from pantomim.teachers.encoder import EncoderTeacher, Output
from pantomim.teachers.fitting import fit_wrapped


@torch.no_grad()
def visual(item: Item) -> Computed:
    """The tower from its own weights: at its own size, and at one whose positions are resampled."""
    config, images = item.config, item.input("images")
    plain: tuple[float, ...] = (0.0,) * 3  # the item's images are normalised already
    encoder = clip_encoder(
        item.weights(),
        item.name,
        activation="quick_gelu",
        heads=config["heads"],
        mean=plain,
        std=(1.0,) * 3,
    )
    said = {}
    outputs: tuple[Output, ...] = ("block", "norm", "projection")
    for output in outputs:
        guidance = EncoderTeacher(encoder, item.name, output=output)(images, "class")
        said[output] = torch.cat([guidance.prefix, guidance.patches], dim=1)
    attention = guidance.attention
    assert attention is not None
    mean = EncoderTeacher(encoder, item.name)(images, "mean").attention
    assert mean is not None
    before_last, _ = encoder.last_blocks(images, 2).tokens
    blocks: Any = encoder.model.blocks
    full = attention_rows(blocks[-1], before_last, slice(None)).mean(dim=1)
    normed = torch.cat([said["norm"][:, :1], said["block"][:, 1:]], dim=1)  # the class token's norm alone
    other: dict[str, Tensor] = {}
    if item.has("images_other_size"):
        larger = EncoderConfig(image_size=(config["other_resolution"],) * 2, patch_size=config["patch_size"])
        fitted = fit_wrapped(encoder, larger)
        elsewhere = EncoderTeacher(fitted, item.name, output="projection")(item.input("images_other_size"))
        other = {
            "tokens_projected_other_size": torch.cat([elsewhere.prefix, elsewhere.patches], dim=1),
            "positions_other_size": fitted.state_dict()["model.pos_embed"][0],
        }
    return Computed(
        other
        | {
            "image_embedding": said["projection"][:, 0],
            "tokens_before_ln_post": said["block"],
            "tokens_after_ln_post": said["norm"],
            "tokens_projected": said["projection"],
            "tokens_projected_without_patch_norm": encoder.project(normed),
            "last_block_attention_mean_over_heads": full,
            "cls_attention": attention,
        },
        config={
            "layer_norm_eps": encoder.model.norm.eps,  # type: ignore[union-attr]
            "layers": encoder.num_blocks,
            "output_dim": encoder.projected,
        },
        deviations={"attention of the mean over patches": distance(mean, full[:, 1:, 1:].mean(dim=1)) / RELATIVE},
    )


ITEMS = {"clip_visual": visual}
