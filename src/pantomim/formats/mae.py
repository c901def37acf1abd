"""Checkpoints of the MAE authors: their names are ours, but for the part they belong to."""

DECODER_PARTS = frozenset(
    {"mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred"}
)
HEAD_PARTS = frozenset({"fc_norm", "head"})


def our_name(name: str) -> str:
    """The name of an official parameter in `MAE` or `Classifier`."""
    part = name.partition(".")[0]
    if part in HEAD_PARTS:
        return name
    return f"decoder.{name}" if part in DECODER_PARTS else f"encoder.{name}"


def official_name(name: str) -> str:
    """The inverse of `our_name`."""
    return name.removeprefix("encoder.").removeprefix("decoder.")
