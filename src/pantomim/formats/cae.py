"""Checkpoints of CAE's authors: the names of both their code bases, lxtGH/CAE and Atten4Vis/CAE.

Pre-training files hold encoder, regressor and decoder; fine-tuned ones a classifier under BEiT's names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pantomim.formats.beit import is_beit, recognise_tables
from pantomim.formats.files import key_report
from pantomim.formats.foreign import AS_PUBLISHED, IMAGENET_MEAN, IMAGENET_STD, Found, Given, Layout, scale_for
from pantomim.formats.native import exact_ratio
from pantomim.formats.reader import read_weights
from pantomim.nn.decoder import LatentDecoder, LatentDecoderConfig
from pantomim.nn.init import Initialisation
from pantomim.nn.position import sincos_2d_rows_first
from pantomim.nn.regressor import Projection, Regressor, RegressorConfig
from pantomim.nn.vit import Encoder, EncoderConfig

Release = Literal["lxtGH/CAE", "Atten4Vis/CAE"]

# Where a part begins there and here; the longer of two that fit comes first.
PARTS: dict[Release, tuple[tuple[str, str], ...]] = {
    "lxtGH/CAE": (
        ("encoder_to_decoder_norm.", "projection.norm."),
        ("encoder_to_decoder.", "projection.linear."),
        ("encoder.", "encoder."),
        ("teacher.", "aligner.copy."),
        ("mask_token", "regressor.mask_token"),
        ("pretext_neck.regressor_blocks.", "regressor.blocks."),
        ("pretext_neck.decoder_blocks.", "decoder.blocks."),
        ("pretext_neck.norm2.", "decoder.norm."),
        ("pretext_neck.norm.", "regressor.norm."),
        ("pretext_neck.head.", "decoder.head."),
    ),
    "Atten4Vis/CAE": (
        ("encoder_to_regresser_norm.", "projection.norm."),
        ("encoder_to_regresser.", "projection.linear."),
        ("encoder.", "encoder."),
        ("alignment_encoder.", "aligner.copy."),
        ("mask_token", "regressor.mask_token"),
        ("regresser.regressor_blocks.", "regressor.blocks."),
        ("decoder.decoder_blocks.", "decoder.blocks."),
        ("decoder.norm.", "decoder.norm."),
        ("regresser.norm.", "regressor.norm."),
        ("decoder.head.", "decoder.head."),
    ),
}
# Inside a block of the regressor, and of the attentive probe.
CROSS = (
    ("gamma_1_cross", "gamma_1"),
    ("gamma_2_cross", "gamma_2"),
    ("norm1_q.", "norm_q."),
    ("norm1_k.", "norm_k."),
    ("norm1_v.", "norm_v."),
    ("norm2_cross.", "norm2."),
    ("cross_attn.", "attn."),
    ("mlp_cross.", "mlp."),
)


def our_name(name: str, release: Release = "lxtGH/CAE") -> str:
    """The name in `CAE` of a parameter of the authors' pre-training model.

    Raises:
        ValueError: if their model has no such parameter.
    """
    for there, here in PARTS[release]:
        if name.startswith(there):
            rest = name.removeprefix(there)
            if here == "regressor.blocks.":
                rest = _block(rest, [(theirs, ours) for theirs, ours in CROSS])
            return here + rest
    raise ValueError(f"{name} must be a parameter of {release}'s CAE; got none that it has.")


def official_name(name: str, release: Release = "lxtGH/CAE") -> str:
    """The inverse of `our_name`.

    Raises:
        ValueError: if `CAE` has no such parameter.
    """
    for there, here in PARTS[release]:
        if name.startswith(here):
            rest = name.removeprefix(here)
            if here == "regressor.blocks.":
                rest = _block(rest, [(ours, theirs) for theirs, ours in CROSS])
            return there + rest
    raise ValueError(f"{name} must be a parameter of CAE; got none that it has.")


def _block(rest: str, pairs: list[tuple[str, str]]) -> str:
    """NUMBER.PARAMETER with the parameter's name exchanged."""
    number, _, parameter = rest.partition(".")
    for old, new in pairs:
        if parameter.startswith(old):
            return f"{number}.{new}{parameter.removeprefix(old)}"
    return rest


HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}  # of the published sizes, encoder and regressor alike
COPIES = ("teacher.", "alignment_encoder.")  # of the encoder, by release; not needed
TABLE = "rd_pos_embed"  # the second release keeps the regressor's table, which we make anew
ROUNDING = 1e-4


@dataclass(frozen=True)
class FoundCAE:
    """What a pre-training file holds, as our modules in evaluation mode.

    Args:
        release: Whose names the file has.
        encoder: With the position table of the file.
        projection: Only where the regressor has another width.
        regressor: With its mask token.
        decoder: With its head.
        left_out: Names of tensors that are a copy of the encoder, or a table that we make anew.
    """

    release: Release
    encoder: Encoder
    projection: Projection | None
    regressor: Regressor
    decoder: LatentDecoder
    left_out: tuple[str, ...]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts under the names that `CAE` has for them."""
        parts: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "regressor": self.regressor,
            "decoder": self.decoder,
        }
        return parts if self.projection is None else parts | {"projection": self.projection}


def load_cae(path: str | Path, given: Given = AS_PUBLISHED) -> FoundCAE:
    """Read a pre-training file of either release; every name and shape must be right.

    Args:
        path: The file.
        given: What the file cannot say; heads of other widths than the published ones.

    Raises:
        ValueError: if the file is damaged, would run code, or has another layout, with the lists of missing,
            unexpected and mis-shaped names.
    """
    return recognise_cae(read_weights(path), str(path), given)


CAE_LAYOUT = Layout(
    project="cae",
    owner="an official CAE",
    name=lambda official: official,
    decoder_parts=frozenset({"pretext_neck", "regresser", "mask_token"}),
    head_parts=frozenset({"fc_norm", "head"}),
    advice="Pre-training files (names that begin with encoder.) and fine-tuned classifiers are read; Paddle's "
    "pre-training files too (.pdparams), mmpretrain's with --format mmpretrain; probes are not.",
)


def is_cae(names: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a pre-training file of either release."""
    return any(name.startswith(("pretext_neck.", "regresser.")) for name in names)


def load_cae_file(path: str | Path, given: Given = AS_PUBLISHED) -> Found:
    """What an official file holds: encoder, regressor and decoder, or a classifier.

    Raises:
        ValueError: as `load_cae`.
    """
    from pantomim.formats.paddle import read_paddle  # imported late: the two know each other
    from pantomim.formats.renamed import is_paddle_cae, recognise_paddle_cae

    if Path(path).suffix == ".pdparams":
        weights = read_paddle(path)
        if is_paddle_cae(weights):
            return recognise_paddle_cae(weights, str(path), given)
        return recognise_cae_file(weights, str(path), given)
    return recognise_cae_file(read_weights(path), str(path), given)


def recognise_cae_file(weights: Mapping[str, Tensor], source: str, given: Given = AS_PUBLISHED) -> Found:
    """The same of weights.

    Raises:
        ValueError: as `load_cae`.
    """
    if not is_cae(weights) and is_beit(weights) and "fc_norm.weight" in weights:
        width = _telling(weights, source, "patch_embed.proj.weight", 4).shape[0]
        scheme: Initialisation = "beit" if width >= 1024 else "cae"
        return recognise_tables(weights, source, CAE_LAYOUT, given, "sincos_rows_first", scheme, HEADS)
    found = recognise_cae(weights, source, given)
    decoder = found.decoder
    notes = (
        f"names of {found.release}",
        f"regressor: {decoder.head.in_features} wide, {len(found.regressor.blocks)} deep",
        f"decoder: {len(decoder.blocks)} deep, head of {decoder.head.out_features}",
    )
    predictor = {
        f"{part}.{name}": tensor
        for part, module in found.modules.items()
        if part != "encoder"
        for name, tensor in module.state_dict().items()
    }
    return Found(CAE_LAYOUT, "encoder", found.encoder, left_out=found.left_out, notes=notes, predictor=predictor)


def recognise_cae(weights: Mapping[str, Tensor], source: str, given: Given = AS_PUBLISHED) -> FoundCAE:
    """The modules of weights under the names of either release; see `load_cae`.

    Raises:
        ValueError: as `load_cae`.
    """
    release = _release(weights, source)
    left_out = tuple(sorted(name for name in weights if name.startswith(COPIES) or name == TABLE))
    found = {name: tensor for name, tensor in weights.items() if name not in left_out}
    stacks = {ours: theirs for theirs, ours in PARTS[release]}
    encoder_config = _encoder_config(found, source, given)
    table = weights.get(TABLE)
    width = _telling(found, source, "mask_token", 3).shape[2]
    hidden = _telling(found, source, stacks["regressor.blocks."] + "0.mlp_cross.fc1.weight", 2).shape[0]
    decoder_hidden = _telling(found, source, stacks["decoder.blocks."] + "0.mlp.fc1.weight", 2).shape[0]
    scale = encoder_config.layer_scale
    heads = given.decoder_heads or _heads(source, "decoder_heads", width)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        encoder = encoder_config.build()
        regressor = RegressorConfig(
            width=width,
            depth=_depth(found, stacks["regressor.blocks."]),
            heads=heads,
            mlp_ratio=exact_ratio(hidden, width),
            layer_scale=scale,
        ).build(encoder_config)
        decoder = LatentDecoderConfig(
            depth=_depth(found, stacks["decoder.blocks."]),
            mlp_ratio=exact_ratio(decoder_hidden, width),
            layer_scale=scale,
        ).build(
            width,
            heads,
            encoder.grid,
            len(_telling(found, source, stacks["decoder.head."] + "weight", 2)),
            encoder_config.initialisation,
        )
        projection = None if width == encoder.width else Projection(encoder.width, width)
    result = FoundCAE(release, encoder, projection, regressor, decoder, left_out)
    expected = cae_weights(result, release)
    if report := key_report(expected, found):
        raise ValueError(f"{source} must be a pre-training file of {release}, as it seems by its names; got {report}.")
    rows_first = sincos_2d_rows_first(width, encoder.grid, 1).unsqueeze(0)
    if table is not None and (table.shape != rows_first.shape or (table - rows_first).abs().max() > ROUNDING):
        raise ValueError(
            f"{source}: {TABLE} must be the sine-cosine table of a {encoder.grid[0]} x {encoder.grid[1]} grid, "
            f"rows first; got another one. CAE's regressor and decoder have no other."
        )
    for part, module in result.modules.items():
        if all(tensor.dtype == torch.float64 for tensor in found.values()):
            module.double()
        names = module.state_dict()
        module.load_state_dict({name: found[official_name(f"{part}.{name}", release)] for name in names})
        module.eval()
    return result


def cae_weights(found: FoundCAE, release: Release = "lxtGH/CAE") -> dict[str, Tensor]:
    """Weights under a release's names, without the copy of the encoder."""
    return {
        official_name(f"{part}.{name}", release): tensor
        for part, module in found.modules.items()
        for name, tensor in module.state_dict().items()
    }


def _release(weights: Mapping[str, Tensor], source: str) -> Release:
    parts = {name.partition(".")[0] for name in weights}
    if ("pretext_neck" in parts) == ("regresser" in parts):
        raise ValueError(
            f"{source} must be a pre-training file of CAE, with names that begin with pretext_neck. (lxtGH/CAE) or "
            f"regresser. (Atten4Vis/CAE); got {len(weights)} tensors of {', '.join(sorted(parts))}. "
            f"mmpretrain's files are read with --format mmpretrain, probes not at all."
        )
    return "lxtGH/CAE" if "pretext_neck" in parts else "Atten4Vis/CAE"


def _encoder_config(weights: Mapping[str, Tensor], source: str, given: Given) -> EncoderConfig:
    kernel = _telling(weights, source, "encoder.patch_embed.proj.weight", 4)
    hidden = _telling(weights, source, "encoder.blocks.0.mlp.fc1.weight", 2).shape[0]
    num_patches = _telling(weights, source, "encoder.pos_embed", 3).shape[1] - 1  # the class token's row
    width, in_chans, patch_size = kernel.shape[:3]
    side = math.isqrt(num_patches)
    if given.image_size is None and side * side != num_patches:
        raise ValueError(
            f"{source}: image_size must be given for a grid that is not square; got {num_patches} patches. "
            f"Pass height and width in pixels."
        )
    if (given.mean is None) != (given.std is None) or (in_chans != 3 and given.mean is None):
        raise ValueError(
            f"{source}: mean and std must both be given for {in_chans} channels; got {given.mean} and {given.std}. "
            f"Pass the values of the data that the encoder was trained on."
        )
    return EncoderConfig(
        image_size=given.image_size or (side * patch_size, side * patch_size),
        patch_size=patch_size,
        in_chans=in_chans,
        width=width,
        depth=_depth(weights, "encoder.blocks."),
        heads=given.heads or _heads(source, "heads", width),
        mlp_ratio=exact_ratio(hidden, width),
        position="sincos_rows_first",
        attention_bias="qv",
        layer_scale=scale_for(width),
        initialisation="beit" if width >= 1024 else "cae",
        mean=given.mean or IMAGENET_MEAN,
        std=given.std or IMAGENET_STD,
    )


def _depth(weights: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks have a name; a gap between their numbers is found when the names are compared."""
    return len({name.removeprefix(blocks).partition(".")[0] for name in weights if name.startswith(blocks)})


def _telling(weights: Mapping[str, Tensor], source: str, name: str, dimensions: int) -> Tensor:
    """A tensor whose shape tells a size."""
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != dimensions:
        raise ValueError(
            f"{source} must be a pre-training file of CAE; got no {name} of {dimensions} dimensions among "
            f"{len(weights)} tensors: {', '.join(sorted(weights))}."
        )
    return tensor


def _heads(source: str, field: str, width: int) -> int:
    if width not in HEADS:
        raise ValueError(
            f"{source}: {field} must be given for width {width}; known are {', '.join(map(str, HEADS))}. "
            f"Weights do not tell the number of heads."
        )
    return HEADS[width]
