"""A folder for transformers: the weights of the class that fits, its config and an image processor; no code of ours."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pantomim.formats.exports.destination import Candidate, Destination, Loaded, head_apart, quiet
from pantomim.formats.exports.network import Network
from pantomim.formats.hf import PREPROCESSING, RESAMPLE, our_names
from pantomim.formats.native import ENCODER
from pantomim.nn.heads import Pool
from pantomim.nn.vit import Encoder, EncoderConfig

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
AUTO = {
    True: ("AutoModel", "tokens", "last_hidden_state"),
    False: ("AutoModelForImageClassification", "logits", "logits"),
}
CODE = """from transformers import AutoImageProcessor, {0}

processor, model = AutoImageProcessor.from_pretrained("."), {0}.from_pretrained(".")
{1} = model(**processor(picture, return_tensors="pt")).{2}"""


class ToHF(Destination):
    """`AutoModel` or `AutoModelForImageClassification`, and `AutoImageProcessor`."""

    name = "hf"

    def write(self, network: Network, folder: Path) -> tuple[str, str]:
        try:
            import transformers
        except ImportError as error:
            raise self.missing("hf") from error
        kinds = _kinds(network.encoder.config) if isinstance(network.encoder, Encoder) else []
        tried = (Candidate(kind, partial(_build, network, kind), partial(_run, network)) for kind in kinds)
        model: Any = self.fitting(network, tried, partial(_named, network.pool))[1]
        if network.classes:
            model.config.id2label = dict(enumerate(network.classes))
            model.config.label2id = {name: place for place, name in enumerate(network.classes)}
        transformers.utils.logging.disable_progress_bar()
        with quiet():
            model.save_pretrained(folder)
        (folder / PREPROCESSING).write_text(json.dumps(preprocessing(network), indent=2) + "\n", encoding="utf-8")
        return f"transformers' {type(model).__name__}", CODE.format(*AUTO[network.kind == ENCODER])

    def read(self, network: Network, folder: Path) -> Loaded:
        import transformers

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model = getattr(transformers, AUTO[network.kind == ENCODER][0]).from_pretrained(folder, **local).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
        divisor = network.transform.divisor
        of_this_size = {"do_resize": False, "do_center_crop": False, "input_data_format": "channels_first"}

        def run(images: Tensor) -> tuple[Tensor, ...]:
            stored = images * divisor
            arrays = [each.numpy() for each in (stored.round().to(torch.uint8) if divisor == 255 else stored)]
            return _run(network, model, processor(arrays, return_tensors="pt", **of_this_size)["pixel_values"])

        return run


def preprocessing(network: Network) -> dict[str, Any]:
    """What an image processor is to do; images of a size that is not square are resized whole."""
    transform, (mean, std) = network.transform, network.encoder.statistics
    size = dict(zip(("height", "width"), transform.image_size, strict=True))
    square = size["height"] == size["width"]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": transform.resized[0]} if square else size,
        "resample": next(number for number, name in RESAMPLE.items() if name == transform.interpolation),
        "do_center_crop": square,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / transform.divisor,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": transform.channels == 3,
    }


def _kinds(config: EncoderConfig) -> list[str]:
    """What may be the same, by the names before Model, Config and ForImageClassification; the likeliest first."""
    if config.rope is not None:
        return ["DINOv3ViT"] if config.rope.coordinates == "centred" else []
    if config.norms.first:
        return ["CLIPVision"]
    if not config.class_token:
        return ["SiglipVision"] if config.mlp.activation == "gelu_tanh" else ["IJepa", "SiglipVision"]
    if config.registers:
        return ["Dinov2WithRegisters"]
    if config.attention_bias == "qv" or config.position == "none":
        return ["Beit", "Dinov2"]
    return ["ViT", "Dinov2", "Beit"]


def _build(network: Network, kind: str) -> nn.Module:
    """A network of transformers with initial weights, without those that nothing is known of."""
    import transformers

    assert isinstance(network.encoder, Encoder)
    config, about = network.encoder.config, getattr(transformers, f"{kind}Config")
    height, width = config.image_size
    settings = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "mlp_ratio": 4 if config.mlp.gated else int(config.mlp_ratio),  # with a gate, two thirds of it
        "use_swiglu_ffn": config.mlp.gated,
        "use_gated_mlp": config.mlp.gated,
        "hidden_act": ACTIVATIONS[config.mlp.activation],
        "layer_norm_eps": config.norms.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "num_register_tokens": config.registers,
        "qkv_bias": config.attention_bias != "none",
        "query_bias": config.attention_bias != "none",
        "key_bias": config.attention_bias == "qkv",
        "value_bias": config.attention_bias != "none",
        "rope_theta": config.rope.temperature if config.rope else None,
        "layerscale_value": config.layer_scale or 1.0,
        "layer_scale_init_value": config.layer_scale or 0.0,
        "use_absolute_position_embeddings": config.position != "none",
        "use_relative_position_bias": config.relative_position == "blocks",
        "use_shared_relative_position_bias": config.relative_position == "shared",
        "use_mean_pooling": network.pool == "mean" or not config.norms.final,  # then there is no final norm
        "vision_use_head": False,
    }
    known = about()
    chosen = {name: value for name, value in settings.items() if hasattr(known, name)}
    if network.kind == ENCODER:
        bare = {"add_pooling_layer": False} if kind in ("ViT", "IJepa", "Beit") else {}
        model: nn.Module = getattr(transformers, f"{kind}Model")(about(**chosen), **bare)
        return model
    task = getattr(transformers, f"{kind}ForImageClassification")
    classifier: Any = task(about(**chosen, num_labels=len(network.classes)))
    nn.init.zeros_(classifier.classifier.weight)  # DINOv2's also reads what ours does not
    return classifier  # type: ignore[no-any-return]


def _run(network: Network, model: Any, images: Tensor) -> tuple[Tensor, ...]:
    output = model(pixel_values=images)
    if network.kind != ENCODER:
        return (output.logits,)
    if type(model).__name__ == "CLIPVisionModel":  # hands out tokens before its norm, which is for the class token
        return network.split(getattr(model, "vision_model", model).post_layernorm(output.last_hidden_state))
    return network.split(output.last_hidden_state)


def _named(pool: Pool | None, model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{model.base_model_prefix}."
    inner = {name.removeprefix(prefix).removeprefix("vision_model."): weight for name, weight in weights.items()}
    found = our_names(model, {name: tensor for name, tensor in inner.items() if not name.startswith("classifier.")})
    if pool is None:
        return found
    width = len(found["patch_embed.proj.weight"])
    head = head_apart(inner, {"classifier.": "head.", "pooler.layernorm.": "fc_norm."})
    if head["head.weight"].shape[1] == 2 * width:  # class token and mean of patches
        head["head.weight"] = head["head.weight"][:, slice(0, width) if pool == "class" else slice(width, None)]
    return found | head
