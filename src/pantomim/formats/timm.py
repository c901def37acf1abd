"""Models of the timm library as encoders: plain vision transformers become our `Encoder`, all others are wrapped.

`timm:NAME` downloads the pretrained weights (or finds them in the cache); `timm:NAME@FILE` takes them from a file in a
layout that timm knows, and needs no network. We read that file ourselves: older timm would run a pickle's code.
"""

import difflib
import zipfile
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pantomim.formats.files import load_exactly
from pantomim.formats.native import exact_ratio, timm_arguments
from pantomim.formats.reader import read_weights
from pantomim.nn.tokens import channel_values, standardise
from pantomim.nn.vit import Encoder, EncoderConfig, Features

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order: averaged weights come first


class TimmEncoder(nn.Module):
    """Any timm model behind an encoder's interface; runs on whole images only.

    Tokens of a transformer become prefix and patches; cells of a feature map become patches, without a prefix.

    Args:
        model: Built with `num_classes=0`.
        name: Under which timm knows it.
        image_size: Height and width, in pixels.
        mean: Mean of each channel, in the scale of the images.
        std: Deviation of each channel.

    Raises:
        ValueError: if the model gives neither tokens nor a feature map.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        name: str,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.model, self.name, self.image_size = model.eval(), name, image_size
        self.in_chans = len(mean)
        self.register_buffer("mean", channel_values("TimmEncoder.mean", mean, self.in_chans), persistent=False)
        self.register_buffer("std", channel_values("TimmEncoder.std", std, self.in_chans), persistent=False)
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_class_token = self.num_prefix > int(getattr(model, "num_reg_tokens", 0))
        with torch.inference_mode():
            output = model.forward_features(torch.zeros(1, self.in_chans, *image_size))  # type: ignore[operator]
        self.width, self.grid = self._shape(output)

    def _shape(self, output: Any) -> tuple[int, tuple[int, int]]:
        """Width of a token, and rows and columns of patches; of a sequence without a known grid, one row."""
        width = int(self.model.num_features)  # type: ignore[arg-type]
        self.channels_last = isinstance(output, Tensor) and output.dim() == 4 and output.shape[1] != width
        if isinstance(output, Tensor) and output.dim() == 4 and width in (output.shape[1], output.shape[3]):
            rows, cols = output.shape[1:3] if self.channels_last else output.shape[2:]
            return width, (rows, cols)
        if isinstance(output, Tensor) and output.dim() == 3:
            count = output.shape[1] - self.num_prefix
            grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
            if grid is None or grid[0] * grid[1] != count:
                grid = (1, count)
            return output.shape[2], (int(grid[0]), int(grid[1]))
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"timm:{self.name} must give tokens or one feature map; got {shape}. Choose another model: "
            f'`timm.list_models("vit_*")` names vision transformers.'
        )

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        ids_keep: Int[Tensor, "B V"] | None = None,
        attention_layer: int | None = None,
    ) -> Features:
        """Encode whole images, scaled but not normalised.

        Raises:
            ValueError: if only some patches or attention weights are asked for, or the images have another shape.
        """
        if ids_keep is not None or attention_layer is not None:
            asked = "ids_keep" if ids_keep is not None else "attention_layer"
            raise ValueError(
                f"TimmEncoder.{asked} must be None; timm's {self.name} runs on whole images and keeps its attention. "
                f"Choose a plain vision transformer."
            )
        expected = (self.in_chans, *self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"TimmEncoder.images must be (B, {', '.join(map(str, expected))}), channels first; got "
                f"{tuple(images.shape)}. Resize the images."
            )
        output = self.model.forward_features(standardise(images, self.mean, self.std))  # type: ignore[operator]
        if output.dim() == 4:
            cells = output.flatten(1, 2) if self.channels_last else output.flatten(2).mT
            return Features(cells[:, :0], cells)
        return Features(output[:, : self.num_prefix], output[:, self.num_prefix :])


def load_timm(name: str, file: str | None = None, *, pretrained: bool = True) -> Encoder | TimmEncoder:
    """A timm model as an encoder, in evaluation mode.

    Args:
        name: As in `timm.list_models()`, with or without a tag.
        file: Weights on disk, in a layout timm reads for this model; None: timm's cache or its download.
        pretrained: False: no weights are read, the model is fresh.

    Raises:
        ValueError: if timm has no such model or no weights for it, or the file does not fit it or would have to run
            code to be read.
        ConnectionError: if the weights are neither in the cache nor to be had.
    """
    import timm  # takes seconds, so only where it is needed

    _check_name(name)
    overlay = _from_file(name, file) if file else None
    try:  # built with the classes of its weights, because timm reads strictly only then
        model: Any = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if not pretrained or (isinstance(error, ValueError) and not file):
            raise
        if file:
            raise ValueError(
                f"timm:{name}@{file} must be weights that timm reads for {name}; got {type(error).__name__}: {error}. "
                f"Check the path and the name of the model."
            ) from error
        raise ConnectionError(
            f"timm:{name} must be in timm's cache or to be downloaded; got {type(error).__name__}: {error}. "
            f"Connect to the network once, set HF_HOME to a cache that has it, or give a file: timm:{name}@FILE."
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # the file's weights, which the model now holds itself
    model.reset_classifier(0)
    return as_encoder(model, name)


def as_encoder(model: Any, name: str) -> Encoder | TimmEncoder:
    """Our `Encoder` with the same weights where it is the same network, else the model wrapped; evaluation mode."""
    source = model.pretrained_cfg
    mean, std = tuple(source["mean"]), tuple(source["std"])
    config = matching_config(model, mean, std)
    if config is None:
        return TimmEncoder(model, name, tuple(source["input_size"][1:]), mean, std).eval()
    with torch.random.fork_rng(devices=[]):
        encoder = config.build()
    weights = {key: value for key, value in model.state_dict().items() if key in encoder.state_dict()}
    if model.no_embed_class:  # timm adds no position to the prefix: the same as rows of zeros
        zeros = model.pos_embed.new_zeros(1, encoder.num_prefix, encoder.width)
        weights["pos_embed"] = torch.cat([zeros, model.pos_embed], dim=1)
    load_exactly(encoder, weights, f"timm:{name}")
    return encoder.eval()


def matching_config(model: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> EncoderConfig | None:
    """The config of an `Encoder` that is the same network up to the final norm, or None.

    The same network: timm's own class, and module by module the same structure (kinds of norm and their eps,
    activations, biases, layer scale ...) as timm's ViT for that config.
    """
    from timm.layers import Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(model) is not VisionTransformer or model.pos_embed is None or len(model.blocks) == 0:
        return None
    block, patch_size = model.blocks[0], getattr(model.patch_embed, "patch_size", (0, 1))
    if patch_size[0] != patch_size[1] or type(block) is not Block or type(block.mlp) is not Mlp:
        return None
    heads: Any = block.attn.num_heads
    config = EncoderConfig(
        image_size=tuple(model.patch_embed.img_size),
        patch_size=patch_size[0],
        in_chans=model.in_chans,
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=heads,
        mlp_ratio=exact_ratio(block.mlp.fc1.weight.shape[0], model.embed_dim),
        registers=model.num_reg_tokens,
        class_token=model.has_class_token,
        position="learned",
        mean=mean,
        std=std,
    )
    with torch.device("meta"):
        ours: Any = VisionTransformer(**timm_arguments(config), weight_init="skip")
    parts = ("patch_embed", "norm_pre", "blocks", "norm")
    if any(str(getattr(model, part)) != str(getattr(ours, part)) for part in parts):
        return None
    rows = ours.pos_embed.shape[1] - (ours.num_prefix_tokens if model.no_embed_class else 0)
    return config if model.pos_embed.shape[1] == rows else None


def _from_file(name: str, file: str) -> dict[str, Any]:
    """What to change in timm's description of the pretrained weights: it gets those of the file, and their classes."""
    import timm

    elsewhere = {"hf_hub_id": None, "url": None}
    if file.endswith(".npz"):  # the layout of Google's models; NumPy reads it without running code
        return {**elsewhere, "file": file, "custom_load": True}
    weights = timm.models.clean_state_dict(read_weights(file, WRAPPERS))
    source = timm.get_pretrained_cfg(name)
    classifier = source.classifier if source else None
    heads = [classifier] if isinstance(classifier, str) else list(classifier or ())
    sizes = [len(weights[f"{head}.weight"]) for head in heads if f"{head}.weight" in weights]
    return {**elsewhere, "state_dict": weights, "custom_load": False, "num_classes": sizes[0] if sizes else 0}


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        advice = f"Did you mean {', '.join(close)}?" if close else "`timm.list_models()` names them."
        raise ValueError(f"timm:NAME must be a model that timm has; got {name}. {advice}")
