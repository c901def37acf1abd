"""Pantomim's own files: safetensors, and beside each a JSON description with the hash of the weights.

`encoder.safetensors` has timm's parameter names, and `encoder.json` the arguments of timm's `VisionTransformer` (with
an entry "class" that names beit.Beit, those of timm's `Beit`; no entry "timm": timm has no such network):

    description = json.load(open("RUN/encoder.json"))
    model = timm.models.vision_transformer.VisionTransformer(**description["timm"]["kwargs"])
    model.load_state_dict(safetensors.torch.load_file("RUN/encoder.safetensors"))
    features = model.forward_features((images - mean) / std)      # mean and std: see the description
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pantomim.core.files import replace_file
from pantomim.core.foreign import reason
from pantomim.core.modes import initial_weights_unused
from pantomim.core.reading import as_kind, read_json
from pantomim.core.scales import Scale
from pantomim.formats.files import check_finite, hash_weights, load_exactly
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
from pantomim.nn.dvae import DVAENetworks, DVAESizes
from pantomim.nn.heads import Classifier, Pool
from pantomim.nn.position import TableName, name_table
from pantomim.nn.segmenter import HeadConfig, Segmenter
from pantomim.nn.vit import Encoder, EncoderConfig
from pantomim.nn.vqkd import VQKDNetworks, VQKDSizes, vqkd_networks

FORMAT_VERSION = 1
MAX_CLAIM = 2**26  # bytes that a description may ask for beyond what its weights explain
ENCODER, DECODER, PREDICTOR, CLASSIFIER = NAMES = ("encoder", "decoder", "predictor", "classifier")
SEGMENTER = "segmenter"
DECODER_SIZES = ("width", "depth", "heads", "mlp_ratio")
TOKENIZER = "tokenizer"
TOKENIZER_KINDS: dict[str, tuple[Any, Callable[..., DVAENetworks | VQKDNetworks]]]
TOKENIZER_KINDS = {"dvae": (DVAESizes, DVAENetworks), "vqkd": (VQKDSizes, vqkd_networks)}

Module = TypeVar("Module", bound=nn.Module)


def save_encoder(folder: str | Path, encoder: Encoder, *, scale: Any, recipe: str) -> None:
    """Write `encoder.safetensors` and `encoder.json`; `scale` is the data's rule: a dataclass or a mapping."""
    about = timm_entry(encoder.config) | _describe(encoder, scale, recipe)
    write_pair(folder, ENCODER, encoder.state_dict(), about)


def load_encoder_folder(path: str | Path) -> Encoder:
    """The encoder of a run folder, in evaluation mode; damaged files and pairs that do not belong together raise."""
    return fill_pair(path, ENCODER, build_encoder)


def build_encoder(about: Mapping[str, Any]) -> Encoder:
    """The encoder that a description states, with initial weights."""
    return TypeAdapter(EncoderConfig).validate_python(about["encoder"]).build()


def load_encoder_file(path: Path) -> Encoder:
    """The encoder of a file of ours of any name, by the description beside it; of a classifier with its norm."""
    about = read_description(path.parent, path.stem)
    if CLASSIFIER in about:
        return fill_pair(path.parent, path.stem, build_classifier).plain_encoder()
    if ENCODER in about and SEGMENTER not in about:
        return fill_pair(path.parent, path.stem, build_encoder)
    raise ValueError(f"{path} must hold an encoder or a classifier; got another part. Name the run's folder instead.")


def save_decoder(folder: str | Path, decoder: MAEDecoder) -> None:
    """Write `decoder.safetensors` and `decoder.json` into a folder."""
    arguments = {
        "encoder_width": decoder.decoder_embed.in_features,
        "num_prefix": decoder.num_prefix,
        "grid": decoder.grid,
        **{name: getattr(decoder.config, name) for name in DECODER_SIZES},
        "out_dim": decoder.decoder_pred.out_features,
    }
    about = {"decoder": arguments, "position_table": describe_positions(decoder)}
    write_pair(folder, DECODER, decoder.state_dict(), about)


def load_decoder(path: str | Path) -> MAEDecoder:
    """The decoder of a run folder, in evaluation mode."""

    def build(about: Mapping[str, Any]) -> MAEDecoder:
        rest = dict(about["decoder"])
        sizes = {name: rest.pop(name) for name in DECODER_SIZES}
        return DecoderConfig(**sizes).build(**rest | {"grid": tuple(rest["grid"])})

    return fill_pair(path, DECODER, build)


def save_predictor(
    folder: str | Path, weights: Mapping[str, Tensor], *, method: str, frozen: Mapping[str, str] | None = None
) -> None:
    """Write what a method learned beside its encoder, by its own names, with the hash of each frozen part if known."""
    write_pair(folder, PREDICTOR, weights, {"method": method, "frozen": frozen})


def load_predictor(path: str | Path) -> dict[str, Tensor]:
    """The weights of a run folder's `predictor.safetensors`, by name."""
    return read_pair(path, PREDICTOR)


def read_frozen(path: str | Path) -> dict[str, str] | None:
    """The hashes of a run's frozen parts, as `predictor.json` states them; None: not known."""
    return read_description(path, PREDICTOR).get("frozen")


def save_classifier(folder: str | Path, classifier: Classifier, *, scale: Any, recipe: str, **about: Any) -> None:
    """Write `classifier.safetensors` and `classifier.json`; what is to be known `about` it is stated beside."""
    head = {"num_classes": classifier.head.out_features, "pool": classifier.pool}
    entry = timm_entry(classifier.encoder.config, classifier.pool, classifier.head.out_features)
    stated = {"classifier": head, **_describe(classifier.encoder, scale, recipe), **about}
    write_pair(folder, CLASSIFIER, _without_owner(classifier), entry | stated)


def build_classifier(about: Mapping[str, Any]) -> Classifier:
    """The classifier that a description states, with initial weights."""
    return Classifier(build_encoder(about), **about["classifier"])


def save_segmenter(
    folder: str | Path, segmenter: Segmenter, *, head: HeadConfig, scale: Any, recipe: str, **about: Any
) -> None:
    """Write `segmenter.safetensors` and `segmenter.json` into a folder; arguments as for `save_classifier`."""
    stated = {"segmenter": {"num_classes": segmenter.num_classes, "head": asdict(head)}}
    stated |= {**_describe(segmenter.encoder, scale, recipe), **about}
    write_pair(folder, SEGMENTER, _without_owner(segmenter), stated)


def build_segmenter(about: Mapping[str, Any]) -> Segmenter:
    """The segmenter that a description states, with initial weights."""
    head = TypeAdapter(HeadConfig).validate_python(about["segmenter"]["head"])
    return Segmenter(build_encoder(about), about["segmenter"]["num_classes"], head)


def _without_owner(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model that owns an encoder, under timm's names."""
    return {name.removeprefix("encoder."): weight for name, weight in model.state_dict().items()}


def save_tokenizer(folder: str | Path, networks: DVAENetworks | VQKDNetworks, *, scale: Any, recipe: str) -> None:
    """Write the networks of a tokenizer into a folder; arguments as for `save_encoder`."""
    description = {
        "kind": "dvae" if isinstance(networks, DVAENetworks) else "vqkd",
        "sizes": asdict(networks.sizes),
        "scale": plain_scale(scale),
        "recipe": recipe,
    }
    write_pair(folder, TOKENIZER, networks.state_dict(), description)


def load_networks(path: str | Path) -> DVAENetworks | VQKDNetworks:
    """The networks of a run folder's tokenizer, in evaluation mode."""

    def build(about: Mapping[str, Any]) -> DVAENetworks | VQKDNetworks:
        sizes, make = TOKENIZER_KINDS[about["kind"]]
        return make(TypeAdapter(sizes).validate_python(about["sizes"]))

    return fill_pair(path, TOKENIZER, build)


def write_pair(folder: str | Path, name: str, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write NAME.safetensors, then NAME.json: a pair that is cut in the middle is detected by its hash."""
    own = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    whole = {"format_version": FORMAT_VERSION, **description, "sha256": hash_weights(own)}
    replace_file(Path(folder) / f"{name}.safetensors", save(own))
    replace_file(Path(folder) / f"{name}.json", (json.dumps(whole, indent=2) + "\n").encode())


def read_description(folder: str | Path, name: str = ENCODER) -> dict[str, Any]:
    """What the JSON file of a pair states, if its format is known."""
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise ValueError(
            f"{name} must be a folder with {name}.safetensors and {name}.json; got {folder}, which has no {name}.json. "
            f"Give the folder of a finished run, which writes these files at its end."
        )
    try:
        description: dict[str, Any] = read_json(path, dict[str, Any], "")
        version = as_kind(description.get("format_version"), int)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be at most {FORMAT_VERSION}; got {version}. "
            f"The file comes from a newer pantomim: upgrade to it."
        )
    return description


def read_pair(folder: str | Path, name: str) -> dict[str, Tensor]:
    """The weights of a pair, which must have the hash that its description states."""
    path, stated = Path(folder) / f"{name}.safetensors", read_description(folder, name).get("sha256")
    try:
        weights = load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise damaged(path, str(error)) from error
    if hash_weights(weights) != stated:
        raise damaged(path, f"another hash than {name}.json states")
    check_finite(weights, str(path))
    return weights


def fill_pair(folder: str | Path, name: str, build: Callable[[dict[str, Any]], Module]) -> Module:
    """The module that a pair describes, with its weights, in evaluation mode; float64 weights stay float64."""
    about = read_description(folder, name)

    def built(device: str) -> Module:
        try:
            with initial_weights_unused(), torch.device(device):
                module = build(about)
            if about.get("scale"):
                owner: Any = getattr(module, "encoder", module)
                owner.scale = Scale(**about["scale"])
            return module
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise damaged(Path(folder) / f"{name}.json", f"{type(error).__name__}: {reason(error)}") from error

    empty = built("meta")  # takes no memory, whatever the sizes
    weights = read_pair(folder, name)
    claimed = sum(tensor.nbytes for tensor in (*empty.parameters(), *empty.buffers()))
    if claimed > MAX_CLAIM + 4 * sum(tensor.nbytes for tensor in weights.values()):
        raise damaged(Path(folder) / f"{name}.json", f"sizes of a network of {claimed:,} bytes, beside smaller weights")
    module = built("cpu")
    if owned := {name for name in module.state_dict() if name.startswith("encoder.")}:  # timm has one level less
        weights = {f"encoder.{name}" if f"encoder.{name}" in owned else name: w for name, w in weights.items()}
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        module = module.double()
    load_exactly(module, weights, str(Path(folder) / f"{name}.safetensors"))
    return module.eval()


# Those of a folder, in evaluation mode
load_classifier: Callable[[str | Path], Classifier] = partial(fill_pair, name=CLASSIFIER, build=build_classifier)
load_segmenter: Callable[[str | Path], Segmenter] = partial(fill_pair, name=SEGMENTER, build=build_segmenter)


def damaged(path: Path, found: str) -> ValueError:
    """The error of a file that is cut or changed."""
    return ValueError(
        f"{path} must be a whole file as pantomim writes it; got {found}. "
        f"Copy the file again, or repeat the run from its config.yaml to write it anew."
    )


def plain_scale(scale: Any) -> dict[str, Any]:
    """A data set's rule from stored values to input, as a mapping."""
    return asdict(scale) if is_dataclass(scale) and not isinstance(scale, type) else dict(scale)


def _describe(encoder: Encoder, scale: Any, recipe: str) -> dict[str, Any]:
    config = encoder.config
    return {
        "encoder": asdict(config),
        "position_table": describe_positions(encoder),
        "mean": config.mean,
        "std": config.std,
        "scale": plain_scale(scale),
        "recipe": recipe,
    }


def describe_positions(module: Encoder | MAEDecoder) -> TableName | Literal["none"]:
    """Which position table the weights hold; an imported one is kept when training continues."""
    table = module.pos_embed if isinstance(module, Encoder) else module.decoder_pos_embed
    return "none" if table is None else name_table(table, module.grid, module.num_prefix)


def timm_entry(config: EncoderConfig, pool: Pool | None = None, num_classes: int = 0) -> dict[str, Any]:
    """What a description states of timm's same network, of an encoder or a classifier's `pool`; {}: timm has none."""
    if any(getattr(config, part) != getattr(EncoderConfig, part) for part in ("mlp", "norms", "rope")):
        return {}
    if config.position == "none" or config.attention_bias != "qkv" or config.relative_position != "none":
        # timm's Beit has a class token and no bias of keys, and no norm before a mean
        fits = config.attention_bias == "qv" and config.class_token and not config.registers and pool != "normed_mean"
        own = {
            "global_pool": "avg" if pool == "mean" else "token",
            "use_abs_pos_emb": config.position != "none",
            "use_shared_rel_pos_bias": config.relative_position == "shared",
            "use_rel_pos_bias": config.relative_position == "blocks",
            "init_values": config.layer_scale,
        }
        network = {"class": "beit.Beit", "kwargs": _timm_arguments(config, own, num_classes)}
        return {"timm": network} if fits else {}
    return {"timm": {"kwargs": timm_arguments(config, pool, num_classes)}} if config.layer_scale is None else {}


def timm_arguments(config: EncoderConfig, pool: Pool | None = None, num_classes: int = 0) -> dict[str, Any]:
    """Arguments that make timm's `VisionTransformer` the same network as an encoder of MAE's kind, or a classifier."""
    token = config.class_token if pool is None else pool == "class"
    own = {
        "class_token": config.class_token,
        "reg_tokens": config.registers,
        "global_pool": "token" if token else "avg",
        "fc_norm": pool == "mean",  # else the norm stands before the pooling, as in pre-training
    }
    return _timm_arguments(config, own, num_classes)


def _timm_arguments(config: EncoderConfig, own: dict[str, Any], num_classes: int) -> dict[str, Any]:
    return {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.in_chans,
        "num_classes": num_classes,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        **own,
        "drop_path_rate": config.drop_path,
    }


def exact_ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` for which `int(width * mlp_ratio)` is `hidden`, rounding errors included."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
