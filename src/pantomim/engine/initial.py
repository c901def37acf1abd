"""Weights to start from: those of another run, of a file, or of timm."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch.optim import Optimizer

from pantomim.formats import load_encoder
from pantomim.formats.files import frozen_hashes, frozen_parts, key_report, load_exactly, other_parts
from pantomim.formats.native import describe_positions, load_decoder, load_predictor, read_frozen
from pantomim.methods.base import Method
from pantomim.nn.decoder import MAEDecoder
from pantomim.nn.resize import resample, resize_encoder_weights
from pantomim.nn.vit import Encoder

MUST_AGREE = (
    *("width", "depth", "heads", "mlp_ratio", "patch_size", "in_chans", "class_token", "registers"),
    *("attention_bias", "relative_position"),
)


def start_from(spec: str, method: Method) -> str:
    """Copy an existing encoder's weights into a method, and the decoder's where there is one that fits.

    What a method predicts with is taken where it was learned beside the same teacher or tokenizer. Where the weights'
    owner is itself the teacher, as in a chain of stages whose student keeps its weights, it is taken too, but for
    layers of other sizes.

    Positions come along, fixed tables too: weights mean what they meant only with the table that they were trained
    with. They are resampled where the grid differs. Mean and deviation stay the method's own.

    Args:
        spec: As `load_encoder` takes it.
        method: Whose encoder and decoder are filled.

    Returns: What was taken, in words.

    Raises:
        ValueError: if the encoder has another width, depth, patch or number of channels; both are listed.
    """
    encoder = getattr(method, "encoder", None)  # the trained one; what is exported may be its EMA copy
    if not isinstance(encoder, Encoder):
        raise ValueError(f"Pretrain.init must be left out for a method without an encoder; got {spec}.")
    source = load_encoder(spec)
    if not isinstance(source, Encoder):
        raise ValueError(
            f"Pretrain.init must be a plain vision transformer; got {spec}, whose weights fit no encoder of ours. "
            f"Choose another one, or leave it out."
        )
    different = [
        f"\n  {name}: {getattr(source.config, name)} there, {getattr(encoder.config, name)} here"
        for name in MUST_AGREE
        if getattr(source.config, name) != getattr(encoder.config, name)
    ]
    if different:
        raise ValueError(
            f"Pretrain.init must have the sizes of method.encoder; got {spec}, which differs in:{''.join(different)}\n"
            f"Give method.encoder these values, or start from other weights."
        )
    weights, _ = resize_encoder_weights(source.state_dict(), source.config, encoder.image_size)
    load_exactly(encoder, weights, spec)
    rest = _take_rest(spec, method)
    method.reset()
    resampled = "" if source.grid == encoder.grid else f" (positions resampled from {source.grid} to {encoder.grid})"
    table = describe_positions(source)
    kept = f" (its position table is kept: {table})" if table != "sincos, columns first" else ""
    return f"Starting from the encoder of {spec}{kept}{resampled}; {rest}."


def carry_over(old: Method, old_optimizer: Optimizer, new: Method, new_optimizer: Optimizer, source: str) -> None:
    """What dBOT's authors do not reset where a new student begins: the bias of the patch projection, AdamW's moments.

    Source: `main_pretrain.py`: the module-wise initialisation passes by the convolution's bias, and the optimiser is
    the same object in all stages.

    Raises:
        ValueError: if AdamW's moments do not fit, because a first teacher of another width gave the decoder another
            head; `source` says whose they are.
    """
    shapes = [
        {name: weight.shape for name, weight in method.named_parameters() if weight.requires_grad}
        for method in (old, new)
    ]
    if shapes[0] != shapes[1]:
        different = [name for name in shapes[0] if shapes[0][name] != shapes[1].get(name)]
        raise ValueError(
            f"Stages.reinit must be full or none where stages differ in their parameters; got reference, and "
            f"{', '.join(different)} of {source} have other sizes. Set Stages.reinit to full."
        )
    ours, theirs = new.exports()["encoder"], old.exports()["encoder"]
    assert isinstance(ours, Encoder)
    assert isinstance(theirs, Encoder)
    ours.patch_embed.proj.load_state_dict({**ours.patch_embed.proj.state_dict(), "bias": theirs.patch_embed.proj.bias})
    new_optimizer.load_state_dict(old_optimizer.state_dict())


def _take_rest(spec: str, method: Method) -> str:
    """The decoder of MAE, or whatever else a method predicts with, where it is there and fits; in words."""
    if not (Path(spec) / "predictor.json").is_file():
        return _take_decoder(spec, method)
    source, ours = load_predictor(spec), method.exports().get("predictor", {})
    if _teaches(spec, method) and source.keys() == ours.keys():
        fitting = [name for name in ours if source[name].shape == ours[name].shape]
        with torch.no_grad():
            for name in fitting:
                ours[name].copy_(source[name])
        return f"what it predicts with is taken too{_but(ours.keys() - set(fitting))}"
    if key_report(ours, source):
        return "what it predicts with is another method's, or has other sizes, and is not taken"
    stated = read_frozen(spec)
    if stated is not None and (different := other_parts(frozen_hashes(method), stated)):
        return f"what it predicts with was learned beside another {different}, and is not taken"
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(source[name])
    return "what it predicts with is taken too"


def _teaches(spec: str, method: Method) -> bool:
    """Whether the method's teacher is the very encoder that it starts from."""
    return any(getattr(part, "name", None) == spec for part in frozen_parts(method).values())


def _but(names: Collection[str]) -> str:
    """What is not taken, in words."""
    return f", but for {', '.join(sorted(names))}, of other sizes" if names else ""


def _take_decoder(spec: str, method: Method) -> str:
    decoder = method.exports().get("decoder")
    if not isinstance(decoder, MAEDecoder) or not (Path(spec) / "decoder.json").is_file():
        return "everything else is drawn from the seed"
    source, ours = load_decoder(spec), decoder.state_dict()
    theirs = source.state_dict()
    if source.num_prefix == decoder.num_prefix:
        theirs["decoder_pos_embed"] = resample(
            source.decoder_pos_embed, source.grid, decoder.grid, source.num_prefix
        ).detach()
    if _teaches(spec, method) and theirs.keys() == ours.keys():
        misfits = {name for name in ours if theirs[name].shape != ours[name].shape}
        load_exactly(decoder, theirs | {name: ours[name] for name in misfits}, spec)
        return f"its decoder is taken too{_but(misfits)}"
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in (theirs, ours)]
    if shapes[0] != shapes[1]:
        return "its decoder has other sizes and is not taken"
    load_exactly(decoder, theirs, spec)
    return "its decoder is taken too"
