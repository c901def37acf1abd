"""A folder for timm: model.safetensors under timm's names, config.json with the name and arguments of the network."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from pantomim.formats.exports.destination import Candidate, Destination, Loaded, head_apart, quiet, standardised
from pantomim.formats.exports.network import Network
from pantomim.formats.native import ENCODER, timm_arguments
from pantomim.formats.timm import our_names
from pantomim.nn.vit import Encoder

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # as on the hub
CODE = """import json, timm

about = json.load(open("config.json"))
model = timm.create_model(about["architecture"], **about["model_args"], checkpoint_path="model.safetensors").eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=about["pretrained_cfg"]))
{use}(transform(picture)[None])  # a PIL picture"""


class ToTimm(Destination):
    """`timm.create_model(NAME, ..., checkpoint_path=FILE)`, for encoders and classifiers."""

    name = "timm"

    def write(self, network: Network, folder: Path) -> tuple[str, str]:
        networks = dict(_networks(network)) if isinstance(network.encoder, Encoder) else {}
        run = partial(_run, network)
        tried = (Candidate(name, partial(_create, name, how), run) for name, how in networks.items())
        candidate, model = self.fitting(network, tried, our_names if network.kind == ENCODER else _named)
        transform, divisor = network.transform, network.transform.divisor
        # timm's transform divides pictures of 8 bits by 255, and leaves others as they are
        stretch = divisor / 255 if 1 < divisor <= 255 else divisor
        mean, std = ([value * stretch for value in values] for values in network.encoder.statistics)
        about = {
            "architecture": candidate.name,
            "num_classes": len(network.classes),
            "model_args": networks[candidate.name],
            "pretrained_cfg": {
                "custom_load": False,
                "input_size": [transform.channels, *transform.image_size],
                "fixed_input_size": True,
                "interpolation": transform.interpolation,
                "crop_pct": 1 / transform.margin,
                "mean": mean,
                "std": std,
                "num_classes": len(network.classes),
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        } | ({"label_names": network.classes} if network.classes else {})
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        code = CODE.format(use="model.forward_features" if network.kind == ENCODER else "model")
        return f"timm's {type(model).__name__} ({candidate.name} with other sizes)", code

    def read(self, network: Network, folder: Path) -> Loaded:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = _create(about["architecture"], {**about["model_args"], "checkpoint_path": str(folder / WEIGHTS)}).eval()
        return lambda images: _run(network, model, standardised(network, images))


def _create(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import timm

    with quiet():
        model: nn.Module = timm.create_model(name, **arguments)
    return model


def _run(network: Network, model: Any, images: Tensor) -> tuple[Tensor, ...]:
    return network.split(model.forward_features(images)) if network.kind == ENCODER else (model(images),)


def _named(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return our_names(model, weights) | head_apart(weights, {"head.": "head.", "fc_norm.": "fc_norm."})


def _networks(network: Network) -> Iterator[tuple[str, dict[str, Any]]]:
    """Networks of timm that could be the same, by name and arguments: first those that are made for it."""
    assert isinstance(network.encoder, Encoder)
    config, pool = network.encoder.config, network.pool
    plain = timm_arguments(config, pool, len(network.classes))
    registers, normed = plain.pop("reg_tokens"), plain.pop("fc_norm") or not config.norms.final
    biased, large_eps = config.attention_bias != "none", config.norms.eps > 3e-6
    gated = {"swiglu_mlp": config.mlp.gated, "scale_mlp": config.mlp.norm}
    if config.layer_scale is not None:
        plain["init_values"] = config.layer_scale
    if config.norms.qk:
        plain["qk_norm"] = True
    if config.class_token and (config.relative_position != "none" or config.attention_bias == "qv"):
        yield (
            "beit_base_patch16_224",
            {
                **{name: value for name, value in plain.items() if name != "class_token"},
                **gated,
                "qkv_bias": biased,
                "use_fc_norm": normed,
                "use_abs_pos_emb": config.position != "none",
                "use_shared_rel_pos_bias": config.relative_position == "shared",
                "use_rel_pos_bias": config.relative_position == "blocks",
            },
        )
    if (rope := config.rope) is not None:
        centred = rope.coordinates == "centred"
        yield (
            "vit_small_patch16_dinov3" if large_eps else "eva02_tiny_patch14_224",
            {
                **plain,
                **gated,
                "swiglu_align_to": 0,
                "qkv_bias": biased,
                "qkv_fused": not config.mlp.norm,
                "num_reg_tokens": registers,
                "use_fc_norm": normed,
                "use_post_transformer_norm": config.norms.final and not normed,
                "use_abs_pos_emb": config.position != "none",
                "rope_type": "dinov3" if centred else "cat",
                "rope_rotate_half": centred,
                "rope_temperature": rope.temperature,
                "ref_feat_shape": rope.reference or config.grid,
            },
        )
    vit = {
        **plain,
        "reg_tokens": registers,
        "fc_norm": pool == "mean",
        "final_norm": config.norms.final,
        "pre_norm": config.norms.first,
        "qkv_bias": biased,
        "pos_embed": "none" if config.position == "none" else "learn",
        "act_layer": config.mlp.activation,
    }
    if config.mlp.gated:
        yield "vit_giant_patch14_dinov2", {**vit, "mlp_ratio": 2 * config.mlp_ratio}
    yield "vit_base_patch16_clip_224" if large_eps else "vit_base_patch16_224", vit
