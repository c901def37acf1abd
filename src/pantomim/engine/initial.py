"""Weights to start from: those of another run, of a file, or of timm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pantomim.config import leaves, of_today, to_dict
from pantomim.core.reading import read_yaml
from pantomim.formats import load_trainable
from pantomim.formats.files import frozen_hashes, frozen_parts, load_exactly, other_parts
from pantomim.formats.native import (
    CLASSIFIER,
    SEGMENTER,
    describe_positions,
    load_decoder,
    load_predictor,
    read_description,
    read_frozen,
    read_pair,
)
from pantomim.methods.base import Method
from pantomim.methods.task import Task
from pantomim.nn.decoder import MAEDecoder
from pantomim.nn.lora import LORA
from pantomim.nn.position import TABLES
from pantomim.nn.resize import adapt_encoder_weights, resample
from pantomim.nn.vit import Encoder

MUST_AGREE = (
    *("width", "depth", "heads", "mlp_ratio", "class_token", "registers", "attention_bias"),
    *("mlp", "norms", "rope"),
)
INITIAL = ("relative_position_bias_table", "gamma_1", "gamma_2", *LORA)  # what may keep its initial values
FITTING = {"relative_position": {("shared", "blocks"), ("none", "shared"), ("none", "blocks")}}


def start_from(spec: str, method: Method, classes: Sequence[str] = (), config: Any = None) -> str:
    """Copy an existing encoder's weights into a method, and what lies behind the encoder where there is one that fits.

    What a method predicts with is copied where it was learned beside the same teacher or tokenizer. Where the weights'
    owner is itself the teacher, as in a chain of stages whose student keeps its weights, it is copied too, but for
    layers of other sizes.

    Positions come along, fixed tables too: weights mean what they meant only with the table that they were trained
    with. They are resampled where the grid differs. Mean and std stay the method's, which `recipes.prepare` takes from
    the weights, but for images of other channels.

    A head comes along only where it was trained for the same task and the same `classes`, in their order; a
    decoder only from the same method and kind of target, by the method's `config`.

    Returns: What was copied, and every adaptation, in words.
    """
    encoder = getattr(method, "encoder", None)  # the trained one; what is exported may be its EMA copy
    if not isinstance(encoder, Encoder):
        raise ValueError(f"Pretrain.init must be left out for a method without an encoder; got {spec}.")
    source = load_trainable(spec)
    task = isinstance(method, Task)
    different = [
        f"\n  {name}: {there} there, {here} here"
        for name in (*MUST_AGREE, "relative_position")
        if (there := getattr(source.config, name)) != (here := getattr(encoder.config, name))
        and not (task and (there, here) in FITTING.get(name, set()))
    ]
    if source.config.layer_scale is not None and encoder.config.layer_scale is None:
        different.append("\n  layer_scale: learned there, none here")
    if different:
        raise ValueError(
            f"Pretrain.init must have the sizes of method.encoder; got {spec}, which differs in:{''.join(different)}\n"
            f"Give method.encoder these values, or start from other weights."
        )
    there, here, projection = source.in_chans, encoder.in_chans, encoder.patch_embed.proj.weight
    if there != here and here > 1 and not projection.requires_grad:  # for gray images the sum is exact
        raise ValueError(
            f"Pretrain.init must have the {here} channels of the images where the projection of patches is not "
            f"trained; got {there} in {spec}. Set optim.lora.rank and optim.freeze_blocks to 0."
        )
    weights, remarks = adapt_encoder_weights(source.state_dict(), source.config, encoder.config)
    own, ours = ((*config.mean, *config.std) for config in (source.config, encoder.config))
    if len(own) == len(ours) and any(abs(a - b) > 1e-4 for a, b in zip(own, ours, strict=True)):  # float32 was stored
        remarks.append("images are standardised by this run's mean and std, not by its own")
    table = describe_positions(source)
    if task:
        assert isinstance(method, Task)
        weights, more = method.take_encoder(weights, table)
        remarks += more
    elif table not in ("none", TABLES["sincos"]):
        remarks.insert(0, "its position table is kept" + (f": {table}" if table != "other" else ""))
    new = {name: weight for name, weight in encoder.state_dict().items() if name.endswith(INITIAL)}
    load_exactly(encoder, new | weights, spec)
    encoder.scale = source.scale if len(own) == len(ours) else None  # other channels are standardised for themselves
    rest = _take_answer(spec, method, classes) if isinstance(method, Task) else _take_rest(spec, method, config)
    method.reset()
    done = f" ({'; '.join(remarks)})" if remarks else ""
    return f"Starting from the encoder of {spec}{done}; {rest}."


def carry_over(old: Method, old_optimizer: Optimizer, new: Method, new_optimizer: Optimizer, source: str) -> None:
    """What dBOT's authors do not reset where a new student begins: the bias of the patch projection, AdamW's moments.

    Moments do not fit where a first teacher of another width gave the decoder another head; `source` names the old run.

    Source: `main_pretrain.py`: the module-wise initialisation passes by the convolution's bias, and the optimiser is
    the same object in all stages.
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


def _take_rest(spec: str, method: Method, config: Any) -> str:
    """The decoder of MAE, or whatever else a method predicts with, where it is there and fits; in words."""
    decoder, stated, same = method.exports().get("decoder"), None, True
    if config is not None:
        told, path = {"kind": "mae", "target.kind": "pixels"}, Path(spec) / "config.yaml"  # a decoder of others
        if path.is_file():
            told = leaves(of_today(read_yaml(path), str(path))["method"])
        same = all(told.get(kind) == leaves(to_dict(config)).get(kind) for kind in ("kind", "target.kind"))
    if (Path(spec) / "predictor.json").is_file():
        what, source, ours = "what it predicts with", load_predictor(spec), method.exports().get("predictor", {})
        stated = read_frozen(spec)
    elif isinstance(decoder, MAEDecoder) and (Path(spec) / "decoder.json").is_file():
        what, source, ours = "its decoder", _resampled(load_decoder(spec), decoder), decoder.state_dict()
        if not same:
            return f"{what} predicts something else, and is not taken"
    else:
        return "everything else is drawn from the seed"
    misfits = {name for name in ours if name not in source or source[name].shape != ours[name].shape}
    # whether the method's teacher is the very encoder that it starts from
    taught = same and any(getattr(part, "name", None) == spec for part in frozen_parts(method).values())
    if source.keys() != ours.keys() or (misfits and not taught):
        return f"{what} has other parts or sizes, and is not taken"
    if stated is not None and not taught and (different := other_parts(frozen_hashes(method), stated)):
        return f"{what} was learned beside another {different}, and is not taken"
    with torch.no_grad():
        for name in ours.keys() - misfits:
            ours[name].copy_(source[name])
    return f"{what} is taken too" + (f", but for {', '.join(sorted(misfits))}, of other sizes" if misfits else "")


def _take_answer(spec: str, method: Task, classes: Sequence[str]) -> str:
    """What follows the encoder of a model that was trained for the same task, if it has the same sizes; in words."""
    new = "everything else is drawn from the seed"
    for name in (CLASSIFIER, SEGMENTER):
        if name not in method.exports() or not (Path(spec) / f"{name}.json").is_file():
            continue
        ours = {key: weight for key, weight in method.model.state_dict().items() if not key.startswith("encoder.")}
        if read_description(spec, name).get("classes") != list(classes):
            return f"its {name} knows other classes, and {new}"
        theirs = read_pair(spec, name)
        if any(key not in theirs or theirs[key].shape != weight.shape for key, weight in ours.items()):
            return f"its {name} has other sizes, and {new}"
        with torch.no_grad():
            for key, weight in ours.items():
                weight.copy_(theirs[key])
        return f"its {name}'s head is taken too"
    return new


def _resampled(source: MAEDecoder, ours: MAEDecoder) -> dict[str, Tensor]:
    """A decoder's weights, its positions resampled to our grid."""
    weights = source.state_dict()
    if source.num_prefix == ours.num_prefix:
        positions = resample(source.decoder_pos_embed, source.grid, ours.grid, source.num_prefix)
        weights["decoder_pos_embed"] = positions.detach()
    return weights
