"""A run of no steps: the encoder as its seed draws it, in a run folder like any other's."""

from pathlib import Path

import torch

from pantomim.config import Pretrain
from pantomim.engine.folder import Finished, RunFolder
from pantomim.engine.runtime import Purpose, compute_dtype, on_main, random_seed, start_accelerator
from pantomim.engine.setup import training_images
from pantomim.formats.native import save_encoder
from pantomim.nn.vit import Encoder


def write_untrained(config: Pretrain, out: Path) -> Finished:
    """Write the encoder with which a run of this config begins, or leave a folder that has it.

    Raises:
        ValueError: if the run is to have steps, its method trains no encoder, or the folder holds something else.
        RunInUseError: if another process works in the folder.
    """
    if config.duration.steps != 0:
        raise ValueError(f"write_untrained.config must be of 0 steps; got {config.duration}. Use pretrain for it.")
    accelerator = start_accelerator(config.runtime, out)
    run = RunFolder(out)
    with run.hold(accelerator, config):
        if (finished := run.finished()) is not None:
            return finished
        torch.manual_seed(random_seed(config.runtime.seed, 0, Purpose.WEIGHTS))
        encoder = config.method.build().exports().get("encoder")
        if not isinstance(encoder, Encoder):
            raise ValueError(f"write_untrained.config must be of a method with an encoder; got {config.method.kind}.")
        scale = training_images(config.data).scale
        finished = Finished(steps=0, wall_s=0.0, images_per_s=None, loss=None)

        def export() -> None:
            run.describe(config, accelerator, compute_dtype(config.runtime, accelerator.device), 0)
            save_encoder(out, encoder, scale=scale, recipe=config.recipe)
            run.finish(finished)

        on_main(accelerator, export)
    return finished
