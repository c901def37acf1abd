"""Checkpoints of the MAE authors (facebookresearch/mae).

Their names are ours but for the part a parameter belongs to.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pantomim.formats.files import key_report
from pantomim.formats.foreign import AS_PUBLISHED, Found, Given, Layout, layout_weights, named_weights, recognise
from pantomim.formats.reader import read_weights
from pantomim.nn.decoder import MAEDecoder
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import Encoder

MAE_LAYOUT = Layout(
    project="mae",
    owner="an official MAE",
    name=lambda official: official,
    decoder_parts=frozenset(
        {"mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred"}
    ),
    head_parts=frozenset({"fc_norm", "head"}),
    advice="Names that begin with `backbone.` are mmpretrain's: `pantomim import --format mmpretrain`; of another "
    "project, `--encoder timm:NAME@FILE` may read it.",
)

# What a classifier has and a pre-trained encoder has not, or the reverse, by pooling.
# Source: the authors' main_finetune.py, which accepts exactly these.
MAY_DIFFER: dict[str, frozenset[str]] = {
    "mean": frozenset({"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias", "norm.weight", "norm.bias"}),
    "class": frozenset({"head.weight", "head.bias"}),
}


def our_name(name: str) -> str:
    """The name of an official parameter in `MAE` or `Classifier`; the inverse of `foreign.official_name`."""
    part = name.partition(".")[0]
    if part in MAE_LAYOUT.head_parts:
        return name
    return f"decoder.{name}" if part in MAE_LAYOUT.decoder_parts else f"encoder.{name}"


def load_mae(path: str | Path, given: Given = AS_PUBLISHED) -> Found:
    """Read an official file; every name and shape must be right.

    Raises:
        ValueError: if the file is damaged or would run code, and as `foreign.recognise`.
    """
    return recognise(read_weights(path), str(path), MAE_LAYOUT, given)


def official_weights(model: Encoder | Classifier, decoder: MAEDecoder | None = None) -> dict[str, Tensor]:
    """Weights under official names; the authors' code reads them from under "model" in a file of `torch.save`.

    Raises:
        ValueError: if the encoder has something that the authors' model has not: registers, or no class token.
    """
    return layout_weights(MAE_LAYOUT, model, decoder)


def load_for_finetuning(classifier: Classifier, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill a new classifier's encoder with official pre-training weights; head and pooling norm stay as drawn.

    Raises:
        ValueError: if anything differs but head, pooling norm and, with mean pooling, the final norm.
    """
    found = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] not in MAE_LAYOUT.decoder_parts}
    expected = named_weights(MAE_LAYOUT, [classifier])
    report = key_report(expected, found, MAY_DIFFER[classifier.pool])
    if report:
        raise ValueError(f"{source} must hold the weights of the classifier's encoder; got {report}.")
    classifier.load_state_dict({our_name(n): t for n, t in found.items() if n in expected}, strict=False)
