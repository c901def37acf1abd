"""A folder for transformers: the weights of the class that fits, its config and an image processor; no code of ours."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pantomim.formats.exports.destination import Destination, Loaded
from pantomim.formats.exports.fitting import Candidate, fitting, head_apart, pool_of, quiet
from pantomim.formats.exports.network import Network
from pantomim.formats.hf import PREPROCESSING, RESAMPLE, our_names
from pantomim.formats.native import ENCODER, SEGMENTER
from pantomim.nn.vit import Encoder, EncoderConfig

Settings = dict[str, Any]
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
CODE = """from transformers import AutoImageProcessor, {auto}

processor, model = AutoImageProcessor.from_pretrained("."), {auto}.from_pretrained(".")
{use}(**processor(picture, return_tensors="pt")){output}"""


class Kind(NamedTuple):
    """A kind of network in transformers: NAMEModel, NAMEForImageClassification and NAMEConfig."""

    name: str
    fits: Callable[[EncoderConfig], bool]  # as far as is easily told
    own: Callable[[EncoderConfig], Settings]  # settings beside those that all have


def _hidden(config: EncoderConfig) -> Settings:
    return {"intermediate_size": int(config.width * config.mlp_ratio)}


def _plain(config: EncoderConfig) -> bool:
    """Whether positions are absolute, and the MLP has no gate."""
    absolute = config.position != "none" and config.relative_position == "none" and config.rope is None
    return absolute and not config.norms.first and not config.mlp.norm


def _dino(config: EncoderConfig) -> Settings:
    ratio = 4 if config.mlp.gated else config.mlp_ratio  # with a gate it has two thirds of it
    found = {"mlp_ratio": int(ratio), "use_swiglu_ffn": config.mlp.gated, "qkv_bias": config.attention_bias != "none"}
    return found | {"layerscale_value": config.layer_scale or 1.0}


def _beit(config: EncoderConfig) -> Settings:
    return _hidden(config) | {
        "use_absolute_position_embeddings": config.position != "none",
        "use_relative_position_bias": config.relative_position == "blocks",
        "use_shared_relative_position_bias": config.relative_position == "shared",
        "layer_scale_init_value": config.layer_scale or 0.0,
        "use_mean_pooling": not config.norms.final,  # it has no final norm then
    }


def _dinov3(config: EncoderConfig) -> Settings:
    biases = dict.fromkeys(("query_bias", "value_bias"), config.attention_bias != "none")
    return _hidden(config) | {
        **biases,
        "key_bias": config.attention_bias == "qkv",
        "num_register_tokens": config.registers,
        "rope_theta": config.rope.temperature if config.rope else None,
        "use_gated_mlp": config.mlp.gated,
        "layerscale_value": config.layer_scale or 1.0,
    }


def _vit(config: EncoderConfig) -> Settings:
    return _hidden(config) | {"qkv_bias": config.attention_bias != "none"}


KINDS = (  # the only list, in the order in which they are tried
    Kind("ViT", lambda c: _plain(c) and c.class_token and not c.registers and c.layer_scale is None, _vit),
    Kind("IJepa", lambda c: _plain(c) and not c.class_token and c.mlp.activation == "gelu", _vit),
    Kind("SiglipVision", lambda c: _plain(c) and not c.class_token, lambda c: _hidden(c) | {"vision_use_head": False}),
    Kind("Dinov2", lambda c: _plain(c) and c.class_token and not c.registers, _dino),
    Kind(
        "Dinov2WithRegisters",
        lambda c: _plain(c) and c.class_token and c.registers > 0,
        lambda c: _dino(c) | {"num_register_tokens": c.registers},
    ),
    Kind("DINOv3ViT", lambda c: c.class_token and c.rope is not None and c.position == "none", _dinov3),
    Kind("CLIPVision", lambda c: c.norms.first and c.class_token and not c.registers, _hidden),
    Kind("Beit", lambda c: c.class_token and not c.registers and c.rope is None and not c.norms.first, _beit),
)


class ToHF(Destination):
    """`AutoModel` or `AutoModelForImageClassification`, and `AutoImageProcessor`."""

    name = "hf"

    def write(self, network: Network, folder: Path) -> str:
        """See `Destination.write`."""
        try:
            import transformers
        except ImportError as error:
            raise self.missing("hf") from error
        if network.kind == SEGMENTER or not isinstance(network.encoder, Encoder):
            raise self.refuse(network, "it is a segmenter, or comes from a library of its own")
        tried = _candidates(network)
        found = fitting(network, tried, partial(_named, pool_of(network)))
        if isinstance(found, str):
            raise self.refuse(network, found)
        model: Any = found[1]
        if network.classes:
            model.config.id2label = dict(enumerate(network.classes))
            model.config.label2id = {name: place for place, name in enumerate(network.classes)}
        with _silent(transformers):
            model.save_pretrained(folder)
        (folder / PREPROCESSING).write_text(json.dumps(preprocessing(network), indent=2) + "\n", encoding="utf-8")
        return f"transformers' {type(model).__name__}"

    def read(self, network: Network, folder: Path) -> Loaded:
        """See `Destination.read`."""
        import transformers

        auto = transformers.AutoModel if network.kind == ENCODER else transformers.AutoModelForImageClassification
        with _silent(transformers):
            model = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        transform = network.transform

        def run(images: Tensor) -> tuple[Tensor, ...]:
            stored = images * (transform.scale.divisor if transform.scale else 1.0)
            whole = transform.scale is not None and transform.scale.divisor == 255
            arrays = [each.numpy() for each in (stored.round().to(torch.uint8) if whole else stored)]
            size_is_right = {"do_resize": False, "do_center_crop": False, "input_data_format": "channels_first"}
            given = processor(arrays, return_tensors="pt", **size_is_right)["pixel_values"]
            return _run(network, model, given)

        return run

    def code(self, network: Network) -> str:
        """See `Destination.code`."""
        if network.kind == ENCODER:
            return CODE.format(auto="AutoModel", use="tokens = model", output=".last_hidden_state")
        return CODE.format(auto="AutoModelForImageClassification", use="logits = model", output=".logits")


def preprocessing(network: Network) -> Settings:
    """What an image processor is to do; images of a size that is not square are resized whole."""
    transform, (mean, std) = network.transform, network.statistics
    (height, width), square = transform.image_size, transform.image_size[0] == transform.image_size[1]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": transform.resized[0]} if square else {"height": height, "width": width},
        "resample": next(number for number, name in RESAMPLE.items() if name == transform.interpolation),
        "do_center_crop": square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / (transform.scale.divisor if transform.scale else 1.0),
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": transform.channels == 3,
    }


def _candidates(network: Network) -> Iterator[Candidate]:
    assert isinstance(network.encoder, Encoder)
    config = network.encoder.config
    square = config.image_size[0] == config.image_size[1]
    own_bias = config.attention_bias == "qv"  # BEiT's: that class is the first to try then, else the last
    for kind in sorted(KINDS, key=lambda kind: own_bias and kind.name != "Beit"):
        if kind.fits(config):
            settings = {
                "hidden_size": config.width,
                "num_hidden_layers": config.depth,
                "num_attention_heads": config.heads,
                "hidden_act": ACTIVATIONS[config.mlp.activation],
                "layer_norm_eps": config.norms.eps,
                "image_size": config.image_size[0] if square else list(config.image_size),
                "patch_size": config.patch_size,
                "num_channels": config.in_chans,
                **kind.own(config),
            }
            yield Candidate(kind.name, partial(_build, network, kind.name, settings), partial(_run, network))


def _build(network: Network, kind: str, settings: Settings) -> nn.Module:
    """A network of transformers with initial weights, which has no weights that nothing is known of."""
    import transformers

    about: Any = getattr(transformers, f"{kind}Config")
    if network.kind == ENCODER:
        bare = {"add_pooling_layer": False} if kind in ("ViT", "IJepa", "Beit") else {}
        model: nn.Module = getattr(transformers, f"{kind}Model")(about(**settings), **bare)
        return model
    if kind == "Beit":
        settings = settings | {"use_mean_pooling": pool_of(network) == "mean"}
    task = f"{kind}ForImageClassification"
    if not hasattr(transformers, task):
        raise ValueError(f"there is no {task}")
    classifier: Any = getattr(transformers, task)(about(**settings, num_labels=len(network.classes)))
    nn.init.zeros_(classifier.classifier.weight)  # DINOv2's also reads what ours does not
    return classifier  # type: ignore[no-any-return]


def _run(network: Network, model: Any, images: Tensor) -> tuple[Tensor, ...]:
    """What `Outputs` gives, of images that are standardised."""
    output = model(pixel_values=images)
    if network.kind != ENCODER:
        return (output.logits,)
    tokens, prefix = output.last_hidden_state, network.encoder.num_prefix
    if type(model).__name__ == "CLIPVisionModel":  # hands out tokens before its norm, which is for the class token
        tokens = getattr(model, "vision_model", model).post_layernorm(tokens)
    return (tokens[:, :prefix], tokens[:, prefix:]) if prefix else (tokens,)


def _named(pool: str | None, model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network, or of a classifier, by our names."""
    inner = {}
    for name, tensor in weights.items():
        for prefix in (f"{model.base_model_prefix}.", "vision_model."):
            name = name.removeprefix(prefix)
        inner[name] = tensor
    head = {} if pool is None else head_apart(inner, {"classifier.": "head.", "pooler.layernorm.": "fc_norm."})
    found = our_names(model, {name: tensor for name, tensor in inner.items() if not name.startswith("classifier.")})
    width = found["patch_embed.proj.weight"].shape[0]
    if pool is not None and head["head.weight"].shape[1] == 2 * width:  # class token and mean of patches
        head["head.weight"] = head["head.weight"][:, slice(0, width) if pool == "class" else slice(width, None)]
    return found | head


def _silent(transformers: Any) -> Any:
    """Without bars and warnings."""
    transformers.utils.logging.disable_progress_bar()
    return quiet()
