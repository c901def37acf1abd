"""Checkpoints of CAE's authors: the names of both their code bases, lxtGH/CAE and Atten4Vis/CAE.

Pre-training files hold encoder, regressor and decoder; fine-tuned ones a classifier under BEiT's names.
"""

from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import Literal

from torch import Tensor, nn

from pantomim.formats.beit import BIAS, CAE_CLASSIFIER, read_tables
from pantomim.formats.layout import (
    AS_PUBLISHED,
    ForeignFile,
    Format,
    Found,
    Given,
    initial_weights_unused,
    scale_for,
)
from pantomim.formats.mae import official_name as beit_name
from pantomim.nn.decoder import LatentDecoder, LatentDecoderConfig
from pantomim.nn.init import Initialisation
from pantomim.nn.position import sincos_2d_rows_first
from pantomim.nn.regressor import Projection, Regressor, RegressorConfig

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
HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}  # of the published sizes, encoder and regressor alike
NECKS = ("pretext_neck.", "regresser.")  # of the two releases
COPIES = ("teacher.", "alignment_encoder.")  # of the encoder, by release; not needed
TABLE = "rd_pos_embed"  # the second release keeps the regressor's table, which we make anew
ROUNDING = 1e-4


def our_name(name: str, release: Release = "lxtGH/CAE") -> str:
    """The name in `CAE` of a parameter of the authors' pre-training model.

    Raises:
        ValueError: if their model has no such parameter.
    """
    found = _exchanged(name, PARTS[release], CROSS)
    if found is None:
        raise ValueError(f"{name} must be a parameter of {release}'s CAE; got none that it has.")
    return found


def official_name(name: str, release: Release = "lxtGH/CAE") -> str:
    """The inverse of `our_name`.

    Raises:
        ValueError: if `CAE` has no such parameter.
    """
    inverse = [[(here, there) for there, here in pairs] for pairs in (PARTS[release], CROSS)]
    found = _exchanged(name, *inverse)
    if found is None:
        raise ValueError(f"{name} must be a parameter of CAE; got none that it has.")
    return found


def _exchanged(name: str, parts: Sequence[tuple[str, str]], cross: Sequence[tuple[str, str]]) -> str | None:
    """A name with its part exchanged and, in the regressor's blocks, its parameter too; None, if no part fits."""
    for old, new in parts:
        if name.startswith(old):
            rest = name.removeprefix(old)
            if "regressor.blocks." in (old, new):
                number, dot, parameter = rest.partition(".")
                pair = next((pair for pair in cross if parameter.startswith(pair[0])), ("", ""))
                rest = number + dot + pair[1] + parameter.removeprefix(pair[0])
            return new + rest
    return None


class CAEFormat(Format):
    """Pre-training files of both releases, and classifiers."""

    name = "cae"
    owner = "an official CAE"
    advice = (
        "Pre-training files (names that begin with encoder.) and fine-tuned classifiers are read; probes, and files of "
        "other code bases than lxtGH/CAE and Atten4Vis/CAE, are not."
    )

    def recognises(self, names: Set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """By the regressor's names, or by what a classifier of CAE's has and BEiT's has not."""
        return any(name.startswith(NECKS) for name in names) or names >= CAE_CLASSIFIER

    def read(self, weights: Mapping[str, Tensor], source: str, given: Given = AS_PUBLISHED) -> Found:
        """See `Format.read`; the copy of the encoder is left out.

        Raises:
            ValueError: also if the second release's table is not the one that CAE's regressor and decoder have.
        """
        if not any(name.startswith(NECKS) for name in weights) and {BIAS, "fc_norm.weight"} <= weights.keys():
            file = ForeignFile(weights, source, self, given, beit_name)
            width = len(file.telling("encoder.patch_embed.proj.weight", 4))
            return read_tables(file, HEADS, "sincos_rows_first", _initialisation(width))
        first = any(name.startswith(NECKS[0]) for name in weights)
        release: Release = "lxtGH/CAE" if first else "Atten4Vis/CAE"
        file = ForeignFile(weights, source, self, given, partial(official_name, release=release))
        return _read_pretraining(file, release)


def _read_pretraining(whole: ForeignFile, release: Release) -> Found:
    left_out = {name for name in whole.weights if name.startswith(COPIES) or name == TABLE}
    file = whole.without(left_out)
    encoder_width = len(file.telling("encoder.patch_embed.proj.weight", 4))
    width, scale = file.telling("regressor.mask_token", 3).shape[2], scale_for(encoder_width)
    initialisation = _initialisation(encoder_width)
    config = file.encoder_config(
        HEADS, "sincos_rows_first", attention_bias="qv", layer_scale=scale, initialisation=initialisation
    )
    heads = file.heads("decoder_heads", width, HEADS)
    regressor_config = RegressorConfig(
        width=width,
        depth=file.depth("regressor.blocks."),
        heads=heads,
        mlp_ratio=file.mlp_ratio("regressor.blocks.0.mlp.fc1", width),
        layer_scale=scale,
    )
    decoder_config = LatentDecoderConfig(
        depth=file.depth("decoder.blocks."),
        mlp_ratio=file.mlp_ratio("decoder.blocks.0.mlp.fc1", width),
        layer_scale=scale,
    )
    out_dim = len(file.telling("decoder.head.weight", 2))
    with initial_weights_unused():
        encoder, regressor = config.build(), Regressor(regressor_config, config)
        decoder = LatentDecoder(decoder_config, width, heads, config.grid, out_dim, initialisation)
        projection = {} if width == encoder_width else {"projection": Projection(encoder_width, width)}
    rest: dict[str, nn.Module] = {"regressor": regressor, "decoder": decoder, **projection}
    file.fill({"encoder": encoder, **rest}, f"pre-training file of {release}")
    _check_table(whole.weights.get(TABLE), width, config.grid, file.source)
    notes = (
        f"names of {release}",
        f"regressor: {width} wide, {len(regressor.blocks)} deep",
        f"decoder: {len(decoder.blocks)} deep, head of {out_dim}",
    )
    predictor = {f"{part}.{name}": t for part, module in rest.items() for name, t in module.state_dict().items()}
    return Found(file.format, "encoder", encoder, left_out=tuple(sorted(left_out)), notes=notes, predictor=predictor)


def _check_table(table: Tensor | None, width: int, grid: tuple[int, int], source: str) -> None:
    expected = sincos_2d_rows_first(width, grid, 1).unsqueeze(0)
    if table is not None and (table.shape != expected.shape or (table - expected).abs().max() > ROUNDING):
        raise ValueError(
            f"{source}: {TABLE} must be the sine-cosine table of a {grid[0]} x {grid[1]} grid, rows first; got another "
            f"one. CAE's regressor and decoder have no other."
        )


def _initialisation(width: int) -> Initialisation:
    return "beit" if width >= 1024 else "cae"
