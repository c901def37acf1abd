"""Runs of every method, small, and what `torchrun` starts to share them out: python shared_out.py FOLDER.

The first half of each run goes to FOLDER/NAME, as processes that are asked to stop leave it (the second half of those
that begin alone); a whole run of some is compiled, in several graphs, to FOLDER/NAME-compiled.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compiled_forwards import CASES
from masked_images import masked_folder
from tiny import tiny_images, tiny_run
from torch._dynamo.backends.registry import lookup_backend

import pantomim.engine.training as training
from pantomim.__main__ import end_one_of_several
from pantomim.config import DataConfig, MaskConfig, Pretrain
from pantomim.data.mask_crops import MaskCrop
from pantomim.data.transforms import View
from pantomim.engine.pretrain import pretrain
from pantomim.engine.runtime import compile_whole
from pantomim.engine.stops import Interrupted
from pantomim.methods import METHODS
from pantomim.nn.segmenter import LinearHeadConfig

STEPS, HALF = 6, 3
COMPILED = ("mae", "cmt_mae")
NAMES = tuple(method.kind for method in METHODS)
BEGUN_ALONE = ("vqkd",)  # k-means of its first batch is another library's, and draws by process


def run(name: str, folder: Path, accumulation: int = 1) -> Pretrain:
    """A run of a method, on images that `make_images` has put there."""
    method = CASES[name]
    config = tiny_run(folder / f"{'large' if name == 'ijepa' else 'small'}.npz", steps=STEPS, method=method)
    config = replace(config, runtime=replace(config.runtime, accumulation=accumulation, save_every=STEPS))
    if name == "mocov3":
        return replace(config, data=replace(config.data, second=View()))
    if name == "segment":  # UPerNet's batch norm has the statistics of one process on CPUs
        crop = MaskCrop(base=(160, 40), ratio=(0.75, 1.5), distortion=None, fill=method.encoder.mean)
        data = DataConfig(str(folder / "masks"), masks=MaskConfig(crop=crop), workers=0)
        return replace(config, data=data, method=replace(method, head=LinearHeadConfig(), num_classes=3), batch_size=4)
    return replace(config, method=replace(method, num_classes=4)) if name == "supervised" else config


def make_images(folder: Path) -> None:
    """What the runs learn from."""
    for name, side in (("small", 16), ("large", 32)):
        tiny_images(folder / f"{name}.npz", side=side)
    masked_folder(folder / "masks")


@contextmanager
def stopping(steps: int) -> Iterator[None]:
    """A signal comes in the step after so many."""
    step, done = training.Training.step, []

    def asked(self: training.Training, *arguments: Any) -> Any:
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    training.Training.step = asked
    try:
        yield
    except Interrupted:
        pass
    finally:
        training.Training.step = step


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name in NAMES:
        with stopping(STEPS if name in BEGUN_ALONE else HALF):
            pretrain(run(name, folder), folder / name)
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 1024
    training.BUCKET_MB = 0.01
    compiled, backend = list[torch.fx.GraphModule](), lookup_backend("aot_eager")

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(graph)
        return backend(graph, inputs)

    training.compile_whole = partial(compile_whole, backend=counting)
    for name in COMPILED:
        config = run(name, folder, accumulation=2)
        torch._dynamo.reset()
        compiled.clear()
        pretrain(replace(config, runtime=replace(config.runtime, compile=True)), folder / f"{name}-compiled")
        sys.stdout.write(f"{name} {len(compiled)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_one_of_several()
