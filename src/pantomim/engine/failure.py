"""A step that went wrong, kept for whoever wants to look at it."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pantomim.checkpoint import find_checkpoint
from pantomim.config import Pretrain
from pantomim.data.stream import Stream
from pantomim.engine.folder import RunFolder
from pantomim.engine.runtime import generator
from pantomim.engine.stops import NonFiniteError
from pantomim.methods.base import Method


def save_failure(
    run: RunFolder, stream: Stream, method: Method, config: Pretrain, step: int, rank: int
) -> NonFiniteError:
    """Make the batch and the draws of a bad step anew and write them to RUN/failure; gives the error to raise.

    The step is a function of (seed, step), so nothing had to be kept while training.
    """
    (batches,) = stream.batches(step, step + 1)
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        draws = method.draw(batch, step, generator(config.runtime.seed, step, batch.images.device))
        tensors |= named_tensors(batch, f"{number}.batch") | named_tensors(draws, f"{number}.draws")
    file = run.path / "failure" / f"step-{step + 1:08d}-process-{rank}.safetensors"
    try:
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file)
        batch_is = f"in {file}"
    except (OSError, SafetensorError) as error:  # the loss is the error to report
        batch_is = f"not kept, because {file} cannot be written ({error})"
    found = find_checkpoint(run.checkpoints)
    kept = f"the checkpoint of step {found.step} is good and kept" if found else "there is no checkpoint before it"
    return NonFiniteError(
        f"The loss or a gradient of step {step + 1} is infinite or NaN; {kept}, and the batch is {batch_is}. "
        f"Try optim.base_lr {config.optim.base_lr / 2:g}, optim.clip_norm 1 or runtime.precision float32 in another "
        f"folder, and check the images for extreme values."
    )


def named_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a dataclass or named tuple and of those within it, by dotted names."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "_fields", ())
    found: dict[str, Tensor] = {}
    for item in items:
        found |= named_tensors(getattr(value, item), f"{name}.{item}")
    return found
