"""Pantomim's own files: an encoder that timm loads, the decoder apart, and a JSON description beside each.

`encoder.safetensors` has timm's parameter names, and `encoder.json` the arguments of timm's `VisionTransformer` (with
an entry "class" that says beit.Beit, those of timm's `Beit`; no entry "timm": timm has no such network):

    description = json.load(open("RUN/encoder.json"))
    model = timm.models.vision_transformer.VisionTransformer(**description["timm"]["kwargs"])
    model.load_state_dict(safetensors.torch.load_file("RUN/encoder.safetensors"))
    features = model.forward_features((images - mean) / std)      # mean and std: see the description
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pantomim.core.files import replace_file
from pantomim.formats.files import hash_weights, load_exactly
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
from pantomim.nn.heads import Classifier
from pantomim.nn.position import TableName, name_table
from pantomim.nn.vit import Encoder, EncoderConfig

FORMAT_VERSION = 1
ENCODER, DECODER, PREDICTOR, CLASSIFIER = "encoder", "decoder", "predictor", "classifier"


@dataclass(frozen=True)
class Description:
    """What `encoder.json` says besides the arguments for timm.

    Args:
        config: Our own description of the encoder, mean and deviation included.
        scale: How stored pixel values became the encoder's input, as the data set recorded it.
        recipe: Name of the recipe that made the weights.
        sha256: Hash of the weights (`hash_weights`).
    """

    config: EncoderConfig
    scale: dict[str, Any]
    recipe: str
    sha256: str


def timm_entry(config: EncoderConfig) -> dict[str, Any]:
    """What `encoder.json` says of timm's network with the same names and features; empty if timm has none."""
    if config.position == "none" or config.attention_bias == "qv" or config.relative_position != "none":
        return _beit_entry(config)
    return {"timm": {"kwargs": timm_arguments(config)}} if config.layer_scale is None else {}


def _beit_entry(config: EncoderConfig) -> dict[str, Any]:
    """The same of timm's `Beit`, which has a class token and no bias of keys."""
    if config.attention_bias != "qv" or not config.class_token or config.registers:
        return {}
    kwargs = {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.in_chans,
        "num_classes": 0,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "global_pool": "token",
        "use_abs_pos_emb": config.position != "none",
        "use_shared_rel_pos_bias": config.relative_position == "shared",
        "use_rel_pos_bias": config.relative_position == "blocks",
        "init_values": config.layer_scale,
        "drop_path_rate": config.drop_path,
    }
    return {"timm": {"class": "beit.Beit", "kwargs": kwargs}}


def timm_arguments(config: EncoderConfig) -> dict[str, Any]:
    """Arguments that make timm's `VisionTransformer` the same network as an encoder of MAE's kind."""
    return {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "in_chans": config.in_chans,
        "num_classes": 0,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "class_token": config.class_token,
        "reg_tokens": config.registers,
        "global_pool": "token" if config.class_token else "avg",
        "fc_norm": False,  # the norm stands before the pooling, as in pre-training
        "drop_path_rate": config.drop_path,
    }


def exact_ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` for which `int(width * mlp_ratio)` is `hidden`, rounding errors included."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def describe_positions(module: Encoder | MAEDecoder) -> TableName | Literal["none"]:
    """Which position table the weights hold: imported ones bring their own, and whoever goes on from them keeps it."""
    table = module.pos_embed if isinstance(module, Encoder) else module.decoder_pos_embed
    if table is None:
        return "none"
    return name_table(table, module.grid, module.num_prefix)


def save_encoder(folder: str | Path, encoder: Encoder, *, scale: Any, recipe: str) -> None:
    """Write `encoder.safetensors` and `encoder.json` into a folder, each whole or not at all.

    Args:
        folder: Made if needed.
        encoder: Its weights are written in their own number type.
        scale: The data set's rule from stored values to the encoder's input; a dataclass or a mapping.
        recipe: Name of what was run.
    """
    _save(Path(folder), ENCODER, encoder, {**timm_entry(encoder.config), **_describe(encoder, scale, recipe)})


def load_encoder_folder(path: str | Path) -> Encoder:
    """The encoder of a run folder, in evaluation mode.

    Raises:
        ValueError: if the files are missing, damaged, of a newer format, or do not belong together.
    """
    folder = Path(path)
    config = read_description(folder).config
    weights = _read_weights(folder, ENCODER)
    return _filled(folder, ENCODER, weights, config.build)


def read_description(path: str | Path) -> Description:
    """What a run folder's `encoder.json` says.

    Raises:
        ValueError: if it is missing, damaged or of a newer format.
    """
    folder = Path(path)
    description = _read_description(folder, ENCODER)
    try:
        return TypeAdapter(Description).validate_python(
            {
                "config": description["encoder"],
                **{key: description[key] for key in ("scale", "recipe", "sha256")},
            }
        )
    except KeyError as error:
        raise _damaged(folder / "encoder.json", f"no entry {error}") from error
    except ValidationError as error:
        raise _damaged(folder / "encoder.json", str(error)) from error


def save_decoder(folder: str | Path, decoder: MAEDecoder) -> None:
    """Write `decoder.safetensors` and `decoder.json` (constructor arguments) into a folder."""
    config = decoder.config
    arguments = {
        "encoder_width": decoder.decoder_embed.in_features,
        "num_prefix": decoder.num_prefix,
        "grid": decoder.grid,
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "out_dim": decoder.decoder_pred.out_features,
    }
    _save(Path(folder), DECODER, decoder, {"decoder": arguments, "position_table": describe_positions(decoder)})


def load_decoder(path: str | Path) -> MAEDecoder:
    """The decoder of a run folder, in evaluation mode.

    Raises:
        ValueError: if the files are missing, damaged, of a newer format, or do not belong together.
    """
    folder = Path(path)
    arguments = _read_description(folder, DECODER).get("decoder")
    if not isinstance(arguments, dict) or "grid" not in arguments:
        raise _damaged(folder / "decoder.json", "no entry 'decoder'")
    arguments = {**arguments, "grid": tuple(arguments["grid"])}
    sizes = {name: arguments.pop(name) for name in ("width", "depth", "heads", "mlp_ratio") if name in arguments}
    weights = _read_weights(folder, DECODER)
    return _filled(folder, DECODER, weights, lambda: DecoderConfig(**sizes).build(**arguments))


def save_predictor(
    folder: str | Path, weights: Mapping[str, Tensor], *, method: str, frozen: Mapping[str, str] | None = None
) -> None:
    """Write `predictor.safetensors` and `predictor.json` into a folder: what a method learned beside its encoder.

    Args:
        folder: Made if needed.
        weights: As `Method.predictor` names them.
        method: Kind of the method.
        frozen: Hash of each part that never changes, such as a tokenizer, as `formats.files.frozen_hashes` gives them;
            None: not known.
    """
    named = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    description = {"format_version": FORMAT_VERSION, "method": method, "frozen": frozen, "sha256": hash_weights(named)}
    replace_file(Path(folder) / f"{PREDICTOR}.safetensors", save(named))
    replace_file(Path(folder) / f"{PREDICTOR}.json", (json.dumps(description, indent=2) + "\n").encode())


def load_predictor(path: str | Path) -> dict[str, Tensor]:
    """The weights of a run folder's `predictor.safetensors`, by name.

    Raises:
        ValueError: if the files are missing, damaged, of a newer format, or do not belong together.
    """
    folder = Path(path)
    expected = _read_description(folder, PREDICTOR).get("sha256")
    weights = _read_weights(folder, PREDICTOR)
    if hash_weights(weights) != expected:
        raise _damaged(folder / f"{PREDICTOR}.safetensors", f"another hash than {PREDICTOR}.json states")
    return weights


def read_frozen(path: str | Path) -> dict[str, str] | None:
    """The hashes of what never changed in the run of a folder, as `predictor.json` states them; None: not known."""
    return _read_description(Path(path), PREDICTOR).get("frozen")


def save_classifier(folder: str | Path, classifier: Classifier, *, scale: Any, recipe: str) -> None:
    """Write `classifier.safetensors` and `classifier.json` into a folder; arguments as for `save_encoder`."""
    head = {"num_classes": classifier.head.out_features, "pool": classifier.pool}
    _save(Path(folder), CLASSIFIER, classifier, {"classifier": head, **_describe(classifier.encoder, scale, recipe)})


def load_classifier(path: str | Path) -> Classifier:
    """The classifier of a folder, in evaluation mode.

    Raises:
        ValueError: if the files are missing, damaged, of a newer format, or do not belong together.
    """
    folder = Path(path)
    description = _read_description(folder, CLASSIFIER)
    try:
        head, config = description["classifier"], TypeAdapter(EncoderConfig).validate_python(description["encoder"])
        num_classes, pool = int(head["num_classes"]), head["pool"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / "classifier.json", f"{type(error).__name__}: {error}") from error
    weights = _read_weights(folder, CLASSIFIER)
    return _filled(folder, CLASSIFIER, weights, lambda: Classifier(config.build(), num_classes, pool))


def _describe(encoder: Encoder, scale: Any, recipe: str) -> dict[str, Any]:
    config = encoder.config
    return {
        "encoder": asdict(config),
        "position_table": describe_positions(encoder),
        "mean": config.mean,
        "std": config.std,
        "scale": asdict(scale) if is_dataclass(scale) and not isinstance(scale, type) else dict(scale),
        "recipe": recipe,
    }


def _save(folder: Path, name: str, module: nn.Module, description: dict[str, Any]) -> None:
    """Weights first, description last: a pair cut in the middle is found out by its hash."""
    weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    whole = {"format_version": FORMAT_VERSION, **description, "sha256": hash_weights(weights)}
    replace_file(folder / f"{name}.safetensors", save(weights))
    replace_file(folder / f"{name}.json", (json.dumps(whole, indent=2) + "\n").encode())


def _read_description(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ValueError(
            f"{name} must be a folder with {name}.safetensors and {name}.json; got {folder}, which has no {name}.json. "
            f"Give the folder of a finished run: `pantomim pretrain` writes these files at its end."
        )
    try:
        description = json.loads(path.read_text())
        version = int(description["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be at most {FORMAT_VERSION}; got {version}. "
            f"The file comes from a newer pantomim: `pip install --upgrade pantomim`."
        )
    return description


def _read_weights(folder: Path, name: str) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(path, str(error)) from error


def _filled(folder: Path, name: str, weights: dict[str, Tensor], build: Any) -> Any:
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten; nobody else's draws may change
        module = build()
    if any(tensor.dtype == torch.float64 for tensor in weights.values()):
        module = module.double()
    load_exactly(module, weights, str(folder / f"{name}.safetensors"))
    expected = _read_description(folder, name).get("sha256")
    if hash_weights(weights) != expected:
        raise _damaged(folder / f"{name}.safetensors", f"another hash than {name}.json states")
    return module.eval()


def _damaged(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path} must be a whole file as pantomim writes it; got {found}. "
        f"Copy the file again, or repeat `pantomim pretrain --config RUN/config.yaml` to write it anew."
    )
