"""The analyses, against the tools of dBOT's authors."""

import torch

from pantomim.analysis.attention_distance import attention_distance, patch_distances
from pantomim.analysis.blocks import block_features
from pantomim.analysis.spectrum import concentration
from pantomim.formats.files import load_exactly
from pantomim.nn.tokens import patch_grid
from pantomim.nn.vit import EncoderConfig
from pantomim.parity.compare import norm_eps
from pantomim.parity.item import Computed, Item


@torch.no_grad()
def dbot(item: Item) -> Computed:
    """Attention distance and singular values of given arrays, and of a vision transformer from its images on."""
    config, outputs = item.config, {}
    for number, side in enumerate(config["attention_patch_sizes"]):
        attention = item.input(f"attention_{number}")  # (layers, heads, T, T), square grids
        count = round((attention.shape[-1] - 1) ** 0.5)
        distances = patch_distances((count, count), (side, side))
        outputs[f"distance_matrix_{number}"] = distances
        outputs[f"attention_distance_{number}"] = attention_distance(attention, distances, 1).distance
    features = item.input("features")
    outputs["svd_concentration"] = torch.stack([concentration(layer).mean(dim=0) for layer in features])

    images, size = item.input("images"), config["patch_size"]
    encoder = (
        EncoderConfig(
            image_size=(images.shape[2], images.shape[3]),
            patch_size=size,
            in_chans=images.shape[1],
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            position="learned",
            mean=(0.0,) * images.shape[1],  # the item's images are normalised already
            std=(1.0,) * images.shape[1],
        )
        .build()
        .double()
        .eval()
    )
    load_exactly(encoder, item.weights(), item.name)
    blocks = list(block_features(encoder, images, need_attention=True))
    weights = [block.attention for block in blocks if block.attention is not None]
    distances = patch_distances(patch_grid(encoder.image_size, size), (size, size))
    far = [attention_distance(found, distances, encoder.num_prefix).distance.mean(dim=0) for found in weights]
    return Computed(
        outputs
        | {
            "vit_attention_batch_mean": torch.stack([found.mean(dim=0) for found in weights]),
            "vit_attention_distance": torch.stack(far),
            "vit_features_last": blocks[-1].patches,
            "vit_svd_concentration": torch.stack([concentration(block.patches).mean(dim=0) for block in blocks]),
        },
        config={"layer_norm_eps": norm_eps(encoder)},
    )
