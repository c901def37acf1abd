"""Held-out images, looked at now and then while training; the test split has no part in it.

By them the best step of a task is found. Of any other method its own loss is taken, with crops and masks drawn once and
for all from the seed, and how far the features of the encoder that it exports spread.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pantomim.config import Pretrain
from pantomim.core.batch import Batch
from pantomim.core.modes import evaluating
from pantomim.core.precision import at_least_float32
from pantomim.core.spread import effective_rank, relative_std
from pantomim.data.dataset import Dataset, evenly_spaced
from pantomim.data.masks import Masks
from pantomim.data.stream import Stream, evaluation_batches, whole_images
from pantomim.engine.runtime import Purpose, autocast, compute_dtype, generator, random_seed
from pantomim.engine.setup import Images
from pantomim.methods.base import Method
from pantomim.methods.task import Task
from pantomim.nn.vit import Encoder

NUM_TIMES = 20  # at most, unless the config says how often
CHUNK = 256  # images at once
# Of a method's own loss: images at most, and at least; so many, as far as they are there, and five looks in any case;
# more images and looks only while all looks together see no more than a tenth of the images that training sees.
MOST, LEAST, FEW, LEAST_TIMES, SHARE = 1024, 8, 64, 5, 0.1
KEPT = 0.5  # of the effective rank that given weights had; below it a warning is due. Ours


def judged_by(method: Method, images: Images, config: Pretrain, total: int, world: int) -> tuple[Dataset | None, str]:
    """The held-out images that a run is judged by, if it is, and words about it for the line on what begins."""
    found = images.held_out or images.held_back
    if isinstance(method, Task):
        return images.held_out, f", judged by {len(images.held_out)} held-out images" if images.held_out else ""
    if found is None:
        why = (
            "data.holdout is 0" if config.data.holdout == 0 else "no val part; validation.share 0.1 takes some of train"
        )
        return None, f", without a held-out loss ({why})" if config.data.source else ""
    least = config.batch_size if method.requirements.gathers else max(LEAST, world)  # else its loss has another scale
    if len(found) < least:
        return None, f", without a held-out loss (which needs {least} images; held back: {len(found)})"
    affordable = int(SHARE * total * config.batch_size / LEAST_TIMES)
    found = found.subset(evenly_spaced(len(found), max(min(MOST, max(FEW, affordable)), least)))
    return found, f", with the loss on {len(found)} held-out images"


class Judge:
    """Looks at held-out images now and then; has a task keep the best weights."""

    given_rank: float | None = None  # effective rank of the features of the weights that the run started from

    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        masks: Masks | None,
        open_stream: Callable[..., Stream],  # crops and views as in training
        epoch: int,
        total: int,
        config: Pretrain,
        accelerator: Accelerator,
        log_every: int,
    ) -> None:
        self.masks, self.base = masks, (0, 0) if config.data.masks is None else config.data.masks.crop.base
        self.method, self.dataset, self.total, self.accelerator = method, dataset, total, accelerator
        self.memory_gib, self.runtime = config.data.memory_gib, config.runtime
        asked = None if config.validation is None else config.validation.every
        if isinstance(method, Task):
            self.every = asked or max(epoch, -(-total // NUM_TIMES))
            method.watch()
            return
        times = max(LEAST_TIMES, min(NUM_TIMES, int(SHARE * total * config.batch_size / len(dataset))))
        self.every = asked or max(1, -(-total // (times * log_every))) * log_every  # so that no more steps are logged
        rows, world = config.batch_size // config.runtime.accumulation, accelerator.num_processes
        if not method.requirements.gathers:
            rows = max(world, len(dataset) // -(-len(dataset) // min(rows, CHUNK * world)) // world * world)
        self.num_batches, self.stream = len(dataset) // rows, open_stream(dataset, batch_size=rows)

    def due(self, done: int) -> bool:
        """Whether to look after so many steps."""
        return done % self.every == 0 or done == self.total

    def warning(self, values: Mapping[str, float | None]) -> str | None:
        """What a look tells of weights that were given; None: nothing."""
        rank = values.get("held_out_rankme")
        if rank is None or self.given_rank is None or rank >= KEPT * self.given_rank:
            return None
        return (
            f"the effective rank of the features is less than half of the {self.given_rank:.3g} that the given weights "
            f"had (held_out_rankme): what these knew may be getting lost. Lower optim.base_lr, or train fewer weights "
            f"by optim.freeze_blocks or optim.lora.rank."
        )

    def __call__(self, done: int) -> dict[str, float | None]:
        """After so many steps: a task's scores of the weights, and of their average; else loss and spread."""
        with autocast(self.accelerator.device, compute_dtype(self.runtime, self.accelerator.device)):
            if isinstance(self.method, Task):
                return {**self.method.validate(done, self.batches, self._sum)}
            return self.own_loss(done)

    @torch.no_grad()
    def own_loss(self, done: int) -> dict[str, float | None]:
        """The method's loss, as in the step just made but in evaluation mode; and the mean patch features' spread.

        Nothing that training reads changes: neither weights and averages nor random states.
        """
        method, device, seed = self.method, self.accelerator.device, self.runtime.seed
        encoder, losses, features = method.exports().get("encoder"), [], []
        devices = [] if device.type == "cpu" else [device]
        with (
            evaluating(method),
            torch.random.fork_rng(devices),
            closing(self.stream.batches(0, self.num_batches)) as steps,
        ):
            for number, (batch,) in enumerate(steps):
                torch.manual_seed(random_seed(seed, number, Purpose.HELD_OUT, self.accelerator.process_index))
                draws = method.draw(batch, max(done - 1, 0), generator(seed, number, device, Purpose.HELD_OUT))
                losses.append(method.forward(batch, draws)["loss"])  # not compiled anew for other batches
                if isinstance(encoder, Encoder):
                    features.append(at_least_float32(encoder(batch.images).patches).mean(dim=1))
        loss: Tensor = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        found: dict[str, float | None] = {"held_out_loss": float(loss)}
        if features:
            everywhere: Tensor = self.accelerator.gather(torch.cat(features)).cpu()
            if everywhere.isfinite().all():
                found |= {"held_out_rankme": effective_rank(everywhere), "held_out_std": relative_std(everywhere)}
        return found

    def batches(self) -> Iterator[Batch]:
        """This process's held-out images, for a task."""
        accelerator, needs = self.accelerator, self.method.requirements
        mine = np.arange(accelerator.process_index, len(self.dataset), accelerator.num_processes)
        size, device = needs.image_size, accelerator.device
        if self.masks is not None:
            for image, mask, index in whole_images(self.dataset, self.masks, self.base, device, mine):
                yield Batch(image, torch.tensor([index]), masks=mask[None].to(device))
            return
        margin: dict[str, Any] = {"margin": needs.test_margin, "memory_gib": self.memory_gib}
        for images, ids in evaluation_batches(self.dataset, size, CHUNK, device, mine, **margin):
            labels = None if self.dataset.labels is None else torch.from_numpy(self.dataset.labels[ids]).to(device)
            yield Batch(images, torch.from_numpy(ids), labels)

    def _sum(self, tally: Tensor) -> Tensor:
        """Over processes."""
        if self.accelerator.num_processes == 1:
            return tally
        everywhere = self.accelerator.reduce(tally.to(self.accelerator.device), reduction="sum")
        return everywhere.cpu()  # type: ignore[no-any-return]
