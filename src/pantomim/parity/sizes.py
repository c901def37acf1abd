"""Our configs of the sizes that an item states under the official names."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import EncoderConfig


def encoder_config(config: Mapping[str, Any], images: Tensor, **settings: Any) -> EncoderConfig:
    """The encoder for an item's images, which are normalised already; `settings` say what the config does not."""
    channels = images.shape[1]
    stated = {
        "image_size": (images.shape[2], images.shape[3]),
        "patch_size": config["patch_size"],
        "in_chans": channels,
        "width": config["embed_dim"],
        "depth": config.get("depth"),
        "heads": config["num_heads"],
        "mlp_ratio": float(config.get("mlp_ratio", 4.0)),
        "drop_path": float(config.get("drop_path", 0.0)),
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    return EncoderConfig(**(stated | settings))


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """MAE's decoder, with the encoder's ratio and stochastic depth."""
    return DecoderConfig(
        width=config["decoder_embed_dim"],
        depth=config["decoder_depth"],
        heads=config["decoder_num_heads"],
        mlp_ratio=float(config.get("mlp_ratio", 4.0)),
        drop_path=float(config.get("drop_path", 0.0)),
    )
