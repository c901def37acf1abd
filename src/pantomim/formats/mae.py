"""Checkpoints of the MAE authors (facebookresearch/mae): encoder alone, encoder with decoder, fine-tuned classifier.

Their names are ours but for the part a parameter belongs to. Nothing in a file says what it is: sizes are read off the
shapes, and then every name and shape must be the one of that network. Heads cannot be read off; they are known for the
published widths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.formats.files import key_report
from pantomim.formats.native import exact_ratio, save_classifier, save_decoder, save_encoder
from pantomim.formats.reader import read_weights
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import ENCODER_SIZES, Encoder, EncoderConfig

DECODER_PARTS = frozenset(
    {"mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred"}
)
HEAD_PARTS = frozenset({"fc_norm", "head"})

HEADS = {size["width"]: size["heads"] for size in ENCODER_SIZES.values()}
DECODER_HEADS = {512: 16}  # the one decoder of all published models

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = {"divisor": 255.0, "rule": "uint8: 255 becomes 1"}  # the authors' ToTensor

# What a classifier has and a pre-trained encoder has not, or the reverse, by pooling.
# Source: the authors' main_finetune.py, which accepts exactly these.
MAY_DIFFER: dict[str, frozenset[str]] = {
    "mean": frozenset({"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias", "norm.weight", "norm.bias"}),
    "class": frozenset({"head.weight", "head.bias"}),
}


def our_name(name: str) -> str:
    """The name of an official parameter in `MAE` or `Classifier`."""
    part = name.partition(".")[0]
    if part in HEAD_PARTS:
        return name
    return f"decoder.{name}" if part in DECODER_PARTS else f"encoder.{name}"


def official_name(name: str) -> str:
    """The inverse of `our_name`."""
    return name.removeprefix("encoder.").removeprefix("decoder.")


@dataclass(frozen=True)
class Given:
    """What a file cannot say; None: as published.

    Args:
        heads: Attention heads of the encoder.
        decoder_heads: Attention heads of the decoder.
        image_size: Height and width; None: square.
        mean: Mean of each channel; None: ImageNet's.
        std: Deviation of each channel.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


AS_PUBLISHED = Given()


@dataclass(frozen=True)
class OfficialMAE:
    """What an official file holds, as our modules in evaluation mode.

    A classifier keeps its encoder to itself: fine-tuned with mean pooling, it has no final norm any more.
    """

    kind: Literal["encoder", "encoder and decoder", "classifier"]
    encoder: Encoder
    decoder: MAEDecoder | None = None
    classifier: Classifier | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import read and wrote."""

    source: Path
    out: Path
    found: OfficialMAE
    files: tuple[str, ...]

    def __str__(self) -> str:
        """A few plain lines."""
        config = self.found.encoder.config
        height, width = config.image_size
        lines = [
            f"{self.source} holds an MAE {self.found.kind}",
            f"encoder: {config.width} wide, {config.depth} deep, {config.heads} heads, patch {config.patch_size}, "
            f"{config.in_chans} x {height} x {width}",
        ]
        if self.found.decoder is not None:
            decoder = self.found.decoder
            lines.append(f"decoder: {decoder.decoder_embed.out_features} wide, {len(decoder.decoder_blocks)} deep")
        if self.found.classifier is not None:
            head = self.found.classifier
            lines.append(f"head: {head.head.out_features} classes, pool {head.pool}")
        return "\n".join([*lines, f"wrote {', '.join(self.files)} to {self.out}"])


def load_mae(path: str | Path, given: Given = AS_PUBLISHED) -> OfficialMAE:
    """Read an official file; every name and shape must be right.

    Raises:
        ValueError: if the file is damaged or would run code; if it does not have an official layout, with the lists of
            missing, unexpected and mis-shaped names; or if heads, image size or channels must be given.
    """
    return recognise(read_weights(path), str(path), given)


def recognise(weights: Mapping[str, Tensor], source: str, given: Given = AS_PUBLISHED) -> OfficialMAE:
    """The modules of weights under official names; see `load_mae`."""
    parts = {name.partition(".")[0] for name in weights}
    if parts & DECODER_PARTS and parts & HEAD_PARTS:
        raise _refused(source, weights, "parts of a decoder and of a classifier")
    encoder_config = _encoder_config(weights, source, given)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        encoder = encoder_config.build()
        if parts & HEAD_PARTS:
            num_classes = len(_telling(weights, source, "head.weight", 2))
            classifier = Classifier(encoder, num_classes, "mean" if "fc_norm" in parts else "class")
            _fill([classifier], weights, source, "classifier")
            return OfficialMAE("classifier", encoder, classifier=classifier)
        if parts & DECODER_PARTS:
            out_dim = encoder.patch_size**2 * encoder.in_chans
            config = _decoder_config(weights, source, given)
            decoder = config.build(encoder.width, encoder.num_prefix, encoder.grid, out_dim)
            _fill([encoder, decoder], weights, source, "encoder and decoder")
            return OfficialMAE("encoder and decoder", encoder, decoder=decoder)
        _fill([encoder], weights, source, "encoder")
        return OfficialMAE("encoder", encoder)


def load_mae_encoder(path: str | Path, given: Given = AS_PUBLISHED) -> Encoder:
    """The encoder of an official file, in evaluation mode.

    Raises:
        ValueError: as `load_mae`; or if it is a classifier with mean pooling, whose encoder has no final norm.
    """
    found = load_mae(path, given)
    if found.classifier is not None and found.classifier.pool == "mean":
        raise ValueError(
            f"{path} must hold an encoder with its final norm; got a classifier with mean pooling, which has none. "
            f"Use the pre-training file, or `pantomim import` for the classifier as a whole."
        )
    return found.encoder


def import_mae(
    path: str | Path,
    out: str | Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ImportReport:
    """Turn an official file into our files: encoder, decoder, classifier, as far as it holds them.

    A classifier with mean pooling gives no encoder file, because it has no final norm.

    Raises:
        ValueError: as `load_mae`, or if `out` holds weights already.
    """
    source, folder = Path(path), Path(out)
    there = [name for name in ("encoder", "decoder", "classifier") if (folder / f"{name}.safetensors").exists()]
    if there:
        raise ValueError(
            f"import_mae.out must not hold weights yet; got {folder} with {', '.join(there)}. Choose a new folder."
        )
    found = load_mae(source, Given(heads, decoder_heads, image_size, mean, std))
    recipe, files = f"mae, imported from {source.name}", []
    if found.classifier is None or found.classifier.pool == "class":
        save_encoder(folder, found.encoder, scale=SCALE, recipe=recipe)
        files.append("encoder")
    if found.decoder is not None:
        save_decoder(folder, found.decoder)
        files.append("decoder")
    if found.classifier is not None:
        save_classifier(folder, found.classifier, scale=SCALE, recipe=recipe)
        files.append("classifier")
    names = tuple(f"{name}.{ending}" for name in files for ending in ("safetensors", "json"))
    return ImportReport(source, folder, found, names)


def official_weights(model: Encoder | Classifier, decoder: MAEDecoder | None = None) -> dict[str, Tensor]:
    """Weights under official names; the authors' code reads them from under "model" in a file of `torch.save`.

    Raises:
        ValueError: if the encoder has something that the authors' model has not: registers, or no class token.
    """
    encoder = model.encoder if isinstance(model, Classifier) else model
    if not encoder.config.class_token or encoder.config.registers:
        has = f"{encoder.config.registers} registers" if encoder.config.class_token else "no class token"
        raise ValueError(
            f"official_weights.model must have a class token and no registers; got {has}. The authors' model knows no "
            f"other; timm's does, see encoder.json."
        )
    return _official_state([model] if decoder is None else [model, decoder])


def load_for_finetuning(classifier: Classifier, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill a new classifier's encoder with official pre-training weights; head and pooling norm stay as drawn.

    Raises:
        ValueError: if anything differs but head, pooling norm and, with mean pooling, the final norm.
    """
    found = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in DECODER_PARTS}
    expected = _official_state([classifier])
    report = key_report(expected, found, MAY_DIFFER[classifier.pool])
    if report:
        raise ValueError(f"{source} must hold the weights of the classifier's encoder; got {report}.")
    classifier.load_state_dict({our_name(n): t for n, t in found.items() if n in expected}, strict=False)


def _official_state(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    return {official_name(name): tensor for module in modules for name, tensor in module.state_dict().items()}


def _fill(modules: Sequence[nn.Module], weights: Mapping[str, Tensor], source: str, kind: str) -> None:
    """Fill modules that share out the official names; float64 weights make float64 modules. Evaluation mode."""
    report = key_report(_official_state(modules), weights)
    if report:
        raise ValueError(
            f"{source} must be an official MAE {kind}, as it seems by its names; got {report}. "
            f"If it is of another project, `--encoder timm:NAME@FILE` may read it."
        )
    for module in modules:
        if all(tensor.dtype == torch.float64 for tensor in weights.values()):
            module.double()
        module.load_state_dict({name: weights[official_name(name)] for name in module.state_dict()})
        module.eval()


def _encoder_config(weights: Mapping[str, Tensor], source: str, given: Given) -> EncoderConfig:
    kernel = _telling(weights, source, "patch_embed.proj.weight", 4)
    table = _telling(weights, source, "pos_embed", 3)
    hidden = _telling(weights, source, "blocks.0.mlp.fc1.weight", 2)
    width, in_chans, patch_size = kernel.shape[:3]
    num_patches = table.shape[1] - 1  # the class token's row
    if given.image_size is None:
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise ValueError(
                f"{source}: image_size must be given for a grid that is not square; got {num_patches} patches. "
                f"Pass height and width in pixels."
            )
        image_size = (side * patch_size, side * patch_size)
    else:
        image_size = given.image_size
    if (given.mean is None) != (given.std is None) or (in_chans != 3 and given.mean is None):
        raise ValueError(
            f"{source}: mean and std must both be given for {in_chans} channels; got {given.mean} and {given.std}. "
            f"Pass the values of the data that the encoder was trained on."
        )
    return EncoderConfig(
        image_size=image_size,
        patch_size=patch_size,
        in_chans=in_chans,
        width=width,
        depth=_depth(weights, "blocks"),
        heads=_heads(source, "heads", width, given.heads, HEADS),
        mlp_ratio=exact_ratio(hidden.shape[0], width),
        position="learned" if "head.weight" in weights else "sincos",
        mean=given.mean or IMAGENET_MEAN,
        std=given.std or IMAGENET_STD,
    )


def _decoder_config(weights: Mapping[str, Tensor], source: str, given: Given) -> DecoderConfig:
    width = _telling(weights, source, "decoder_embed.weight", 2).shape[0]
    hidden = _telling(weights, source, "decoder_blocks.0.mlp.fc1.weight", 2)
    return DecoderConfig(
        width=width,
        depth=_depth(weights, "decoder_blocks"),
        heads=_heads(source, "decoder_heads", width, given.decoder_heads, DECODER_HEADS),
        mlp_ratio=exact_ratio(hidden.shape[0], width),
    )


def _depth(weights: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks have a name; a gap between their numbers is found when the names are compared."""
    return len({name.split(".")[1] for name in weights if name.startswith(f"{blocks}.")})


def _telling(weights: Mapping[str, Tensor], source: str, name: str, dimensions: int) -> Tensor:
    """A tensor whose shape tells a size."""
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != dimensions:
        raise _refused(source, weights, f"no {name} of {dimensions} dimensions")
    return tensor


def _heads(source: str, field: str, width: int, given: int | None, known: Mapping[int, int]) -> int:
    if given is not None:
        return given
    if width not in known:
        widths = ", ".join(map(str, sorted(known)))
        raise ValueError(
            f"{source}: {field} must be given for width {width}; known are {widths}. "
            f"Weights do not tell the number of heads."
        )
    return known[width]


def _refused(source: str, weights: Mapping[str, Tensor], why: str) -> ValueError:
    return ValueError(
        f"{source} must have an official MAE layout (encoder, encoder and decoder, or classifier); got {why}. "
        f"It holds {len(weights)} tensors: {', '.join(sorted(weights))}."
    )
