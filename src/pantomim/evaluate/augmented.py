"""Heads on frozen encoders, trained on augmented images as MAE's and CAE's authors do it: what these two share."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, AtLeastTwo, AtLeastZero, Positive
from pantomim.data.stream import Stream, evaluation_batches
from pantomim.data.transforms import Crop
from pantomim.evaluate.base import Bench, Evaluation, Scores
from pantomim.evaluate.parts import accuracy, known_classes, renumber

CROP = Crop(kind="single_draw", scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3), flip=True)
TEST_MARGIN = 256 / 224  # the test image's shorter side over the crop's


@dataclass(frozen=True)
class Candidate:
    """One contender: its frozen features of images, and a head made from their width and the number of classes."""

    features: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B ... D"]]
    head: Callable[[int, int], nn.Module]


@frozen
class AugmentedProbe(Evaluation):
    """A head on frozen features of augmented images.

    On sets far smaller than ImageNet, raise `base_lr`: there are fewer steps to learn in.

    Args:
        epochs: Passes over the training images.
        warmup_epochs: Of these, with a rate that rises from 0.
        base_lr: Per 256 images.
        batch_size: At most; a smaller set is one batch.
        chunk: Images that the encoder sees at once.
    """

    epochs: AtLeastOne = 90
    warmup_epochs: AtLeastZero = 10
    base_lr: Positive = 0.1
    batch_size: AtLeastTwo = 16384
    chunk: AtLeastOne = 256

    by_chunk: ClassVar[bool]  # the head sees, and normalises over, a chunk; else the whole batch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{type(self).__name__}.warmup_epochs must be below epochs; got {self.warmup_epochs} of {self.epochs}. "
                f"Train longer, or warm up shorter."
            )

    @abstractmethod
    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Of a head; its rate is set before each step."""

    @abstractmethod
    def lr(self, step: int, steps_per_epoch: int, batch_size: int) -> float:
        """Rate of a step."""


def train_heads(probe: AugmentedProbe, candidates: dict[str, Candidate], bench: Bench) -> dict[str, Scores]:
    """Scores by name; all contenders see the same augmented batches, and the seed also decides the heads."""
    train, device, size = bench.train, bench.device, bench.reference.image_size
    assert train.labels is not None
    classes = known_classes(torch.from_numpy(train.labels))
    batch_size = min(probe.batch_size, len(train))
    micro = math.ceil(batch_size / probe.chunk) if probe.by_chunk else max(1, batch_size // probe.chunk)
    batch_size = batch_size // micro * micro
    stream = Stream(
        train, batch_size=batch_size, image_size=size, crop=CROP, seed=probe.seed, device=device, micro=micro
    )
    heads: dict[str, nn.Module] = {}
    optimisers: dict[str, torch.optim.Optimizer] = {}
    for step, batches in enumerate(stream.batches(0, probe.epochs * stream.steps_per_epoch)):
        groups = [[batch] for batch in batches] if probe.by_chunk else [batches]
        targets = [torch.cat([batch.labels for batch in group if batch.labels is not None]).cpu() for group in groups]
        targets = [renumber(labels, classes, "train").to(device) for labels in targets]
        for name, candidate in candidates.items():
            for group, target in zip(groups, targets, strict=True):
                with torch.no_grad():
                    features = torch.cat([candidate.features(batch.images).float() for batch in group])
                if name not in heads:
                    heads[name] = seeded_head(candidate, features.shape[-1], len(classes), probe.seed).to(device)
                    optimisers[name] = probe.optimiser(heads[name].train().parameters())
                (F.cross_entropy(heads[name](features), target) / len(groups)).backward()
            for settings in optimisers[name].param_groups:
                settings["lr"] = probe.lr(step, stream.steps_per_epoch, batch_size)
            optimisers[name].step()
            optimisers[name].zero_grad()
    guesses, labels = predict(candidates, heads, bench)
    return {name: accuracy(guess, renumber(labels, classes, "test")) for name, guess in guesses.items()}


def seeded_head(candidate: Candidate, width: int, num_classes: int, seed: int) -> nn.Module:
    """A head whose weights depend on the seed alone, not on which contenders came before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return candidate.head(width, num_classes)


@torch.inference_mode()
def predict(
    candidates: dict[str, Candidate], heads: dict[str, nn.Module], bench: Bench
) -> tuple[dict[str, Int[Tensor, " n"]], Int[Tensor, " n"]]:
    """Predictions of heads in evaluation mode on the centre of each test image, a little magnified; and the labels."""
    assert bench.test.labels is not None
    guesses: dict[str, list[Tensor]] = {name: [] for name in candidates}
    labels: list[Tensor] = []
    size, chunk = bench.reference.image_size, bench.evaluation.chunk
    for images, indices in evaluation_batches(bench.test, size, chunk, bench.device, margin=TEST_MARGIN):
        for name, candidate in candidates.items():
            logits = heads[name].eval()(candidate.features(images).float())
            guesses[name].append(logits.argmax(dim=1).cpu())
        labels.append(torch.from_numpy(bench.test.labels[indices]))
    return {name: torch.cat(parts) for name, parts in guesses.items()}, torch.cat(labels)
