"""Checkpoints of CAE's authors: the names of both their code bases, lxtGH/CAE and Atten4Vis/CAE.

Pre-training files hold encoder, regressor and decoder; fine-tuned ones a classifier under BEiT's names.
"""

from collections.abc import Mapping, Set
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from pantomim.core.modes import initial_weights_unused
from pantomim.formats.beit import BIAS, CAE_CLASSIFIER, read_tables, scale_for
from pantomim.formats.layout import ForeignFile, Format, Found, Given
from pantomim.formats.mae import official_name as beit_name
from pantomim.nn.decoder import LatentDecoder, LatentDecoderConfig
from pantomim.nn.init import Initialisation
from pantomim.nn.position import sincos_2d_rows_first
from pantomim.nn.regressor import Projection, Regressor, RegressorConfig

Release = Literal["lxtGH/CAE", "Atten4Vis/CAE"]

# Where a part begins, here and in each release; the longer of two that fit comes first.
PARTS = (
    ("projection.norm.", "encoder_to_decoder_norm.", "encoder_to_regresser_norm."),
    ("projection.linear.", "encoder_to_decoder.", "encoder_to_regresser."),
    ("encoder.", "encoder.", "encoder."),
    ("aligner.copy.", "teacher.", "alignment_encoder."),
    ("regressor.mask_token", "mask_token", "mask_token"),
    ("regressor.blocks.", "pretext_neck.regressor_blocks.", "regresser.regressor_blocks."),
    ("decoder.blocks.", "pretext_neck.decoder_blocks.", "decoder.decoder_blocks."),
    ("decoder.norm.", "pretext_neck.norm2.", "decoder.norm."),
    ("regressor.norm.", "pretext_neck.norm.", "regresser.norm."),
    ("decoder.head.", "pretext_neck.head.", "decoder.head."),
)
# Inside a block of the regressor, and of the attentive probe: there and here.
CROSS = (
    ("gamma_1_cross", "gamma_1"), ("gamma_2_cross", "gamma_2"), ("norm1_q.", "norm_q."), ("norm1_k.", "norm_k."),
    ("norm1_v.", "norm_v."), ("norm2_cross.", "norm2."), ("cross_attn.", "attn."), ("mlp_cross.", "mlp."),
)  # fmt: skip
HEADS = {192: 12, 384: 12, 768: 12, 1024: 16}  # of the published sizes, encoder and regressor alike
NECKS = ("pretext_neck.", "regresser.")  # of the two releases
COPIES = ("teacher.", "alignment_encoder.")  # of the encoder, by release; not needed
TABLE = "rd_pos_embed"  # the second release keeps the regressor's table, which we make anew
ROUNDING = 1e-4


def official_name(name: str, release: Release = "lxtGH/CAE") -> str:
    """A release's name of a parameter of `CAE`: another part and, in the regressor's blocks, another parameter."""
    for ours, *theirs in PARTS:
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if ours == "regressor.blocks.":
                number, dot, parameter = rest.partition(".")
                there, here = next((pair for pair in CROSS if parameter.startswith(pair[1])), ("", ""))
                rest = number + dot + there + parameter.removeprefix(here)
            return theirs[release != "lxtGH/CAE"] + rest
    raise ValueError(f"{name} must be a parameter of CAE; got none that it has.")


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

    def read(self, weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
        """See `Format.read`; the EMA copy of the encoder is left out."""
        if not any(name.startswith(NECKS) for name in weights) and {BIAS, "fc_norm.weight"} <= weights.keys():
            file = ForeignFile(weights, source, self, given, beit_name)
            width = len(file.telling("encoder.patch_embed.proj.weight", 4))
            return read_tables(file, HEADS, "sincos_rows_first", _initialisation(width))
        release: Release = "lxtGH/CAE" if any(name.startswith(NECKS[0]) for name in weights) else "Atten4Vis/CAE"
        file = ForeignFile(weights, source, self, given, partial(official_name, release=release))
        return _read_pretraining(file, release)


def _read_pretraining(whole: ForeignFile, release: Release) -> Found:
    left_out = {name for name in whole.weights if name.startswith(COPIES) or name == TABLE}
    file = whole.without(left_out)
    encoder_width = len(file.telling("encoder.patch_embed.proj.weight", 4))
    width, out_dim = file.telling("regressor.mask_token", 3).shape[2], len(file.telling("decoder.head.weight", 2))
    common: dict[str, Any] = {"layer_scale": scale_for(encoder_width)}
    how = {"attention_bias": "qv", "initialisation": (initial := _initialisation(encoder_width)), **common}
    config, heads = file.encoder_config(HEADS, "sincos_rows_first", **how), file.heads("decoder_heads", width, HEADS)
    sizes = {
        part: {"depth": file.depth(f"{part}.blocks."), "mlp_ratio": file.mlp_ratio(f"{part}.blocks.", width), **common}
        for part in ("regressor", "decoder")
    }
    of_regressor = RegressorConfig(width=width, heads=heads, **sizes["regressor"])
    of_decoder, rest = LatentDecoderConfig(**sizes["decoder"]), dict[str, nn.Module]()
    with initial_weights_unused():
        encoder, rest["regressor"] = config.build(), Regressor(of_regressor, config)
        rest["decoder"] = LatentDecoder(of_decoder, width, heads, config.grid, out_dim, initial)
        if width != encoder_width:
            rest["projection"] = Projection(encoder_width, width)
    file.fill({"encoder": encoder, **rest}, f"pre-training file of {release}")
    table, expected = whole.weights.get(TABLE), sincos_2d_rows_first(width, config.grid, 1).unsqueeze(0)
    if table is not None and (table.shape != expected.shape or (table - expected).abs().max() > ROUNDING):
        raise ValueError(
            f"{file.source}: {TABLE} must be the sine-cosine table of a {config.grid[0]} x {config.grid[1]} grid, rows "
            f"first; got another one. CAE's regressor and decoder have no other."
        )
    notes = (
        f"names of {release}",
        f"regressor: {width} wide, {sizes['regressor']['depth']} deep",
        f"decoder: {sizes['decoder']['depth']} deep, head of {out_dim}",
    )
    predictor = {f"{part}.{name}": t for part, module in rest.items() for name, t in module.state_dict().items()}
    return Found(file.format, "encoder", encoder, left_out=tuple(sorted(left_out)), notes=notes, predictor=predictor)


def _initialisation(width: int) -> Initialisation:
    return "beit" if width >= 1024 else "cae"
