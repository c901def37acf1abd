"""Held-out images, by which the best step of a task is found; the test split has no part in it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pantomim.config import Pretrain
from pantomim.core.batch import Batch
from pantomim.data.dataset import Dataset
from pantomim.data.masks import Masks
from pantomim.data.stream import evaluation_batches, whole_images
from pantomim.engine.runtime import autocast, compute_dtype
from pantomim.methods.task import Task

NUM_TIMES = 20  # at most, unless the config says how often
CHUNK = 256  # images at once


class Judge:
    """Scores a task on held-out images now and then, and has it keep the best weights."""

    def __init__(
        self,
        task: Task,
        dataset: Dataset,
        masks: Masks | None,
        epoch: int,
        total: int,
        config: Pretrain,
        accelerator: Accelerator,
    ) -> None:
        assert config.validation is not None
        self.masks, self.base = masks, (0, 0) if config.data.masks is None else config.data.masks.crop.base
        self.task, self.dataset, self.total, self.accelerator = task, dataset, total, accelerator
        self.every = config.validation.every or max(epoch, -(-total // NUM_TIMES))
        self.memory_gib, self.runtime = config.data.memory_gib, config.runtime
        task.watch()

    def due(self, done: int) -> bool:
        """Whether to score after so many steps."""
        return done % self.every == 0 or done == self.total

    def __call__(self, done: int) -> dict[str, float | None]:
        """Scores of the weights, and of their average if there is one, after so many steps."""
        with autocast(self.accelerator.device, compute_dtype(self.runtime, self.accelerator.device)):
            return {**self.task.validate(done, self.batches, self._sum)}

    def batches(self) -> Iterator[Batch]:
        """This process's held-out images."""
        accelerator, needs = self.accelerator, self.task.requirements
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
