"""The smallest run there is: 16-pixel images, two blocks, a few milliseconds a step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain, RuntimeConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import EncoderConfig

ENCODER = EncoderConfig(
    image_size=(16, 16), patch_size=4, in_chans=3, width=16, depth=2, heads=2, mean=(0.5,) * 3, std=(0.3,) * 3
)
BEIT_ENCODER = replace(
    ENCODER,
    position="none",
    relative_position="shared",
    attention_bias="qv",
    layer_scale=0.1,
    initialisation="beit",
)
CAE_ENCODER = replace(ENCODER, position="sincos_rows_first", attention_bias="qv", layer_scale=0.1, initialisation="cae")
MOCO_ENCODER = replace(ENCODER, position="sincos_rows_first", initialisation="mocov3")
DECODER = DecoderConfig(width=16, depth=1, heads=2)


def tiny_images(path: Path, num_images: int = 80, side: int = 16, channels: int = 3) -> Path:
    """Colour ramps with noise, four classes, four fifths of them for training."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % 4
    ramp = np.linspace(0, 120, side)[:, None, None] * (labels[:, None, None, None] + 1) / 4
    images = np.clip(ramp + rng.integers(0, 100, (num_images, side, side, channels)), 0, 255).astype(np.uint8)
    split = np.where(np.arange(num_images) % 5 == 4, "test", "train")
    np.savez(path, images=images, labels=labels, split=split)
    return path


def tiny_run(source: Path, *, steps: int = 12, batch_size: int = 16, **changes: Any) -> Pretrain:
    """A run on `tiny_images`; `runtime` and `optim` take the fields to change, as mappings."""
    runtime = {"tracker": "none", "device": "cpu", "threads": 1} | changes.pop("runtime", {})
    optim = {"base_lr": 0.02, "warmup": Duration(steps=2)} | changes.pop("optim", {})
    config = Pretrain(
        recipe="tiny",
        init=changes.pop("init", None),
        data=DataConfig(source=str(source)),
        method=MAEConfig(encoder=ENCODER, decoder=DECODER),
        batch_size=batch_size,
        duration=Duration(steps=steps),
        optim=OptimConfig(**optim),
        runtime=RuntimeConfig(**runtime),
    )
    return replace(config, **changes)
