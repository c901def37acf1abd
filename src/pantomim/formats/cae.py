"""Names of CAE's parameters in the authors' two code bases (lxtGH/CAE and Atten4Vis/CAE), and in ours."""

from typing import Literal

Release = Literal["lxtGH/CAE", "Atten4Vis/CAE"]

# Where a part begins there and here; the longer of two that fit comes first.
PARTS: dict[Release, tuple[tuple[str, str], ...]] = {
    "lxtGH/CAE": (
        ("encoder_to_decoder_norm.", "projection.norm."),
        ("encoder_to_decoder.", "projection.linear."),
        ("encoder.", "encoder."),
        ("teacher.", "aligner."),
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
        ("alignment_encoder.", "aligner."),
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
