"""Checkpoints of other projects, most of MAE's networks: encoder alone, encoder with decoder, fine-tuned classifier.

A `Layout` says what a project calls their parameters; all else is the same for every project. Nothing in a file says
what it is: sizes are read off the shapes, and then every name and shape must be the one of that network. Heads cannot
be read off; they are known for the published widths.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.formats.files import key_report
from pantomim.formats.native import (
    describe_positions,
    exact_ratio,
    save_classifier,
    save_decoder,
    save_encoder,
    save_predictor,
)
from pantomim.nn.decoder import DecoderConfig, MAEDecoder
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import ENCODER_SIZES, Encoder, EncoderConfig

HEADS = {size["width"]: size["heads"] for size in ENCODER_SIZES.values()}
DECODER_HEADS = {512: 16}  # the one decoder of all published models

NAMED = 10  # tensors, when a file is refused
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = {"divisor": 255.0, "rule": "uint8: 255 becomes 1"}  # of all projects, whether they divide before or with `std`


@dataclass(frozen=True)
class Layout:
    """What a project calls the parameters of MAE's networks.

    Args:
        project: Its name, for records.
        owner: The same with an article, for messages.
        name: A parameter's name there, of its official name (that of the MAE authors).
        decoder_parts: What names begin with, up to the first dot, that only a decoder has.
        head_parts: The same for a classifier.
        advice: What to do with a file of another layout.
    """

    project: str
    owner: str
    name: Callable[[str], str]
    decoder_parts: frozenset[str]
    head_parts: frozenset[str]
    advice: str


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
class Found:
    """What a file holds, as our modules in evaluation mode.

    A classifier keeps its encoder to itself: fine-tuned with mean pooling, it has no final norm any more.

    Args:
        layout: Whose names the file has.
        kind: What it is.
        encoder: With the position table of the file.
        decoder: The same.
        classifier: The encoder with its head.
        left_out: Names of tensors that are no part of a network.
        notes: What the report says besides; of an encoder alone, what there is to go on with.
        predictor: What BEiT or CAE learned beside the encoder, as `Method.predictor` names it.
    """

    layout: Layout
    kind: Literal["encoder", "encoder and decoder", "classifier"]
    encoder: Encoder
    decoder: MAEDecoder | None = None
    classifier: Classifier | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    predictor: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import read and wrote."""

    source: Path
    out: Path
    found: Found
    files: tuple[str, ...]

    def __str__(self) -> str:
        """A few plain lines."""
        encoder = self.found.encoder
        config, (height, width) = encoder.config, encoder.image_size
        lines = [
            f"{self.source} holds {self.found.layout.owner} {self.found.kind}",
            f"encoder: {config.width} wide, {config.depth} deep, {config.heads} heads, patch {config.patch_size}, "
            f"{config.in_chans} x {height} x {width}",
            f"positions: {_positions(encoder)}",
        ]
        if self.found.decoder is not None:
            decoder = self.found.decoder
            lines.append(
                f"decoder: {decoder.decoder_embed.out_features} wide, {len(decoder.decoder_blocks)} deep; "
                f"positions: {describe_positions(decoder)}, as stored"
            )
        lines += self.found.notes
        if self.found.kind == "encoder" and not self.found.notes:
            lines.append("no decoder in the file: no reconstructions, and going on from here begins with a fresh one")
        if self.found.classifier is not None:
            head = self.found.classifier
            lines.append(f"head: {head.head.out_features} classes, pool {head.pool}")
        if self.found.left_out:
            lines.append(f"left out, no part of the network: {', '.join(self.found.left_out)}")
        return "\n".join([*lines, f"wrote {', '.join(self.files)} to {self.out}"])


def _positions(encoder: Encoder) -> str:
    """Absolute and relative ones, as far as there are any."""
    words = [] if encoder.pos_embed is None else [f"{describe_positions(encoder)}, as stored"]
    if encoder.config.relative_position != "none":
        tables = "one table shared by" if encoder.config.relative_position == "shared" else "a table in each of"
        words.append(f"relative, {tables} the blocks")
    return "; ".join(words) or "none"


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    load: Callable[[Path, Given], Found],
    given: Given = AS_PUBLISHED,
) -> ImportReport:
    """Turn a checkpoint into our files: encoder, decoder or predictor, classifier, as far as it holds them.

    A classifier with mean pooling gives no encoder file, because it has no final norm.

    Args:
        path: The checkpoint.
        out: Folder for our files.
        load: Who knows its layout: `formats.mae.load_mae`, `formats.mmpretrain.load_mmpretrain`,
            `formats.beit.load_beit`, `formats.cae.load_cae_file`.
        given: What the file cannot say.

    Raises:
        ValueError: as `load`, or if `out` holds weights already.
    """
    source, folder = Path(path), Path(out)
    there = [
        name for name in ("encoder", "decoder", "predictor", "classifier") if (folder / f"{name}.safetensors").exists()
    ]
    if there:
        raise ValueError(
            f"import.out must not hold weights yet; got {folder} with {', '.join(there)}. Choose a new folder."
        )
    found = load(source, given)
    recipe, files = f"{found.layout.project}, imported from {source.name}", []
    if found.classifier is None or found.classifier.pool == "class":
        save_encoder(folder, found.encoder, scale=SCALE, recipe=recipe)
        files.append("encoder")
    if found.decoder is not None:
        save_decoder(folder, found.decoder)
        files.append("decoder")
    if found.predictor is not None:
        save_predictor(folder, found.predictor, method=found.layout.project)
        files.append("predictor")
    if found.classifier is not None:
        save_classifier(folder, found.classifier, scale=SCALE, recipe=recipe)
        files.append("classifier")
    names = tuple(f"{name}.{ending}" for name in files for ending in ("safetensors", "json"))
    return ImportReport(source, folder, found, names)


def recognise(
    weights: Mapping[str, Tensor],
    source: str,
    layout: Layout,
    given: Given = AS_PUBLISHED,
    left_out: tuple[str, ...] = (),
) -> Found:
    """The modules of weights under a project's names; every name and shape must be right.

    Raises:
        ValueError: if they do not have this layout, with the lists of missing, unexpected and mis-shaped names; or if
            heads, image size or channels must be given.
    """
    parts = {name.partition(".")[0] for name in weights}
    if parts & layout.decoder_parts and parts & layout.head_parts:
        raise refused(source, layout, weights, "parts of a decoder and of a classifier")
    encoder_config = _encoder_config(weights, source, layout, given)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        encoder = encoder_config.build()
        if parts & layout.head_parts:
            num_classes = len(telling(weights, source, layout, "head.weight", 2))
            pool: Literal["mean", "class"] = "mean" if layout.name("fc_norm.weight") in weights else "class"
            classifier = Classifier(encoder, num_classes, pool)
            fill([classifier], weights, source, layout, "classifier")
            return Found(layout, "classifier", encoder, classifier=classifier, left_out=left_out)
        if parts & layout.decoder_parts:
            out_dim = encoder.patch_size**2 * encoder.in_chans
            config = _decoder_config(weights, source, layout, given)
            decoder = config.build(encoder.width, encoder.num_prefix, encoder.grid, out_dim)
            fill([encoder, decoder], weights, source, layout, "encoder and decoder")
            return Found(layout, "encoder and decoder", encoder, decoder=decoder, left_out=left_out)
        fill([encoder], weights, source, layout, "encoder")
        return Found(layout, "encoder", encoder, left_out=left_out)


def scale_for(width: int) -> float:
    """The first value of BEiT's and CAE's layer scales, which trained weights no longer tell."""
    return 1e-5 if width >= 1024 else 0.1


def encoder_of(found: Found, source: str) -> Encoder:
    """The encoder of a file, in evaluation mode.

    Raises:
        ValueError: if it is a classifier with mean pooling, whose encoder has no final norm.
    """
    if found.classifier is not None and found.classifier.pool == "mean":
        raise ValueError(
            f"{source} must hold an encoder with its final norm; got a classifier with mean pooling, which has none. "
            f"Use the pre-training file, or `pantomim import` for the classifier as a whole."
        )
    return found.encoder


def official_name(name: str) -> str:
    """The MAE authors' name of a parameter of `Encoder`, `MAEDecoder`, `Classifier` or `MAE`."""
    return name.removeprefix("encoder.").removeprefix("decoder.")


def layout_weights(layout: Layout, model: Encoder | Classifier, decoder: MAEDecoder | None = None) -> dict[str, Tensor]:
    """Weights under a project's names.

    Raises:
        ValueError: if the encoder has something that MAE's has not: registers, relative positions, layer scales, or no
            class token, no bias of keys, no position table.
    """
    encoder = model.encoder if isinstance(model, Classifier) else model
    config = encoder.config
    if (config.attention_bias, config.relative_position, config.layer_scale) != ("qkv", "none", None) or (
        config.position == "none"
    ):
        raise ValueError(
            f"layout_weights.model must have attention and positions as MAE has them; got attention_bias "
            f"{config.attention_bias}, relative_position {config.relative_position}, layer_scale {config.layer_scale}, "
            f"position {config.position}. MAE's model knows no other; timm's may, see encoder.json."
        )
    if not encoder.config.class_token or encoder.config.registers:
        has = f"{encoder.config.registers} registers" if encoder.config.class_token else "no class token"
        raise ValueError(
            f"layout_weights.model must have a class token and no registers; got {has}. MAE's model knows no other; "
            f"timm's does, see encoder.json."
        )
    return named_weights(layout, [model] if decoder is None else [model, decoder])


def named_weights(layout: Layout, modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """What modules hold, under a project's names."""
    return {
        layout.name(official_name(name)): tensor for module in modules for name, tensor in module.state_dict().items()
    }


def fill(modules: Sequence[nn.Module], weights: Mapping[str, Tensor], source: str, layout: Layout, kind: str) -> None:
    """Fill modules that share out the names; float64 weights make float64 modules. Evaluation mode."""
    report = key_report(named_weights(layout, modules), weights)
    if report:
        raise ValueError(
            f"{source} must be {layout.owner} {kind}, as it seems by its names; got {report}. {layout.advice}"
        )
    for module in modules:
        if all(tensor.dtype == torch.float64 for tensor in weights.values()):
            module.double()
        module.load_state_dict({name: weights[layout.name(official_name(name))] for name in module.state_dict()})
        module.eval()


def _encoder_config(weights: Mapping[str, Tensor], source: str, layout: Layout, given: Given) -> EncoderConfig:
    kernel = telling(weights, source, layout, "patch_embed.proj.weight", 4)
    table = telling(weights, source, layout, "pos_embed", 3)
    hidden = telling(weights, source, layout, "blocks.0.mlp.fc1.weight", 2)
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
        depth=depth_of(weights, layout.name("blocks.")),
        heads=heads_of(source, "heads", width, given.heads, HEADS),
        mlp_ratio=exact_ratio(hidden.shape[0], width),
        position="learned" if layout.name("head.weight") in weights else "sincos",
        mean=given.mean or IMAGENET_MEAN,
        std=given.std or IMAGENET_STD,
    )


def _decoder_config(weights: Mapping[str, Tensor], source: str, layout: Layout, given: Given) -> DecoderConfig:
    width = telling(weights, source, layout, "decoder_embed.weight", 2).shape[0]
    hidden = telling(weights, source, layout, "decoder_blocks.0.mlp.fc1.weight", 2)
    return DecoderConfig(
        width=width,
        depth=depth_of(weights, layout.name("decoder_blocks.")),
        heads=heads_of(source, "decoder_heads", width, given.decoder_heads, DECODER_HEADS),
        mlp_ratio=exact_ratio(hidden.shape[0], width),
    )


def depth_of(weights: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks have a name; a gap between their numbers is found when the names are compared."""
    return len({name.removeprefix(blocks).partition(".")[0] for name in weights if name.startswith(blocks)})


def telling(weights: Mapping[str, Tensor], source: str, layout: Layout, official: str, dimensions: int) -> Tensor:
    """A tensor whose shape tells a size."""
    name = layout.name(official)
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != dimensions:
        raise refused(source, layout, weights, f"no {name} of {dimensions} dimensions")
    return tensor


def heads_of(source: str, field: str, width: int, given: int | None, known: Mapping[int, int]) -> int:
    """Attention heads, which weights do not tell: those given, or those of the published width."""
    if given is not None:
        return given
    if width not in known:
        widths = ", ".join(map(str, sorted(known)))
        raise ValueError(
            f"{source}: {field} must be given for width {width}; known are {widths}. "
            f"Weights do not tell the number of heads."
        )
    return known[width]


def refused(source: str, layout: Layout, weights: Mapping[str, Tensor], why: str) -> ValueError:
    """Why a file is not read, with the first of its names."""
    more = f" and {len(weights) - NAMED} more" if len(weights) > NAMED else ""
    return ValueError(
        f"{source} must have {layout.owner} layout (encoder, encoder and decoder, or classifier); got {why}. "
        f"{layout.advice} It holds {len(weights)} tensors: {', '.join(sorted(weights)[:NAMED])}{more}."
    )
