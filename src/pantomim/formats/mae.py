"""Checkpoints of the MAE authors (facebookresearch/mae); their names are ours without the part."""

from collections.abc import Mapping, Set

from torch import Tensor

from pantomim.core.modes import initial_weights_unused
from pantomim.formats.layout import ForeignFile, Format, Found, Given
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import ENCODER_SIZES

HEADS = {size["width"]: size["heads"] for size in ENCODER_SIZES.values()}
DECODER_HEADS = {512: 16}  # the one decoder of all published models
DECODER_PARTS = frozenset(
    {"mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred"}
)
NO_DECODER = "no decoder in the file: no reconstructions, and training that continues from here starts with a fresh one"
HEAD_PARTS = frozenset({"fc_norm", "head"})


def official_name(name: str) -> str:
    """The MAE authors' name of a parameter of `Encoder`, `MAEDecoder`, `Classifier` or `MAE`."""
    return name.removeprefix("encoder.").removeprefix("decoder.")


class MAEFormat(Format):
    """The authors' own files, and what ColorMAE's converter for mmdetection writes."""

    name = "mae"
    owner = "an official MAE"
    advice = (
        "Names that begin with `backbone.` are of format mmpretrain; files of other projects may be read as "
        "timm:NAME@FILE."
    )

    def recognises(self, names: Set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """By the one bias of queries, keys and values; BEiT and CAE have none for keys."""
        return "blocks.0.attn.qkv.bias" in names

    def read(self, weights: Mapping[str, Tensor], source: str, given: Given) -> Found:
        """See `Format.read`."""
        file = ForeignFile(weights, source, self, given, official_name)
        return read_networks(file, DECODER_PARTS, HEAD_PARTS)


def read_networks(
    file: ForeignFile, decoder_parts: Set[str], head_parts: Set[str], left_out: tuple[str, ...] = ()
) -> Found:
    """MAE's networks from a file of any names; the parts (before the first dot) tell decoder and classifier."""
    has_decoder, has_head = file.has_part(decoder_parts), file.has_part(head_parts)
    if has_decoder and has_head:
        raise file.refused("parts of a decoder and of a classifier")
    # fine-tuning learns the positions, which pre-training has fixed
    config = file.encoder_config(HEADS, position="learned" if file.has("head.weight") else "sincos")
    with initial_weights_unused():
        encoder = config.build()
    if has_head:
        return Found(file.format, "classifier", encoder, classifier=file.classifier(encoder), left_out=left_out)
    if not has_decoder:
        file.fill({"encoder": encoder}, "encoder")
        return Found(file.format, "encoder", encoder, left_out=left_out, notes=(NO_DECODER,))
    width = len(file.telling("decoder.decoder_embed.weight", 2))
    decoder_config = DecoderConfig(
        width=width,
        depth=file.depth("decoder.decoder_blocks."),
        heads=file.heads("decoder_heads", width, DECODER_HEADS),
        mlp_ratio=file.mlp_ratio("decoder.decoder_blocks.", width),
    )
    with initial_weights_unused():
        out_dim = encoder.patch_size**2 * encoder.in_chans
        decoder = decoder_config.build(encoder.width, encoder.num_prefix, encoder.grid, out_dim)
    file.fill({"encoder": encoder, "decoder": decoder}, "encoder and decoder")
    return Found(file.format, "encoder and decoder", encoder, decoder=decoder, left_out=left_out)
