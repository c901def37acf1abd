"""Heads on frozen encoders, trained on augmented images as MAE's and CAE's authors do it: what these two share.

Each contender is a run of the engine in a folder of its own, so that an evaluation that was interrupted is resumed.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.ranges import AtLeastOne, AtLeastTwo, AtLeastZero, Positive
from pantomim.data.dataset import Dataset
from pantomim.data.stream import evaluation_batches
from pantomim.data.transforms import Crop
from pantomim.engine.pretrain import pretrain
from pantomim.engine.stops import MemoryFullError, NonFiniteError
from pantomim.evaluate.base import Bench, Evaluation, Scores
from pantomim.evaluate.parts import held_out_rows, known_classes, renumber
from pantomim.formats.files import frozen_hashes
from pantomim.formats.native import load_predictor
from pantomim.formats.transform import Transform
from pantomim.methods.probe import Frozen, Probe, ProbeConfig

CROP = Crop(kind="single_draw", scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3), flip=True)


@frozen
class ProbeRun(Pretrain):
    """The training of one contender's head; it is no recipe that a user may start."""

    method: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True)
class Candidate:
    """One contender: its frozen features of images, and what reads them."""

    features: Frozen
    probe: ProbeConfig


@frozen
class AugmentedProbe(Evaluation):
    """A head on frozen features of augmented images; it is scored after the last step."""

    epochs: AtLeastOne = 90  # Passes over the training images
    warmup_epochs: AtLeastZero = 10  # Of these, with a rate that rises from 0
    base_lr: Positive = 0.1  # Per 256 images
    batch_size: AtLeastTwo = 16384  # At most; a smaller set is one batch
    chunk: AtLeastOne = 256  # Images that the encoder sees at once
    # Choose rate and length by the score on held-out images: those of a split val beside a test split, else a fifth of
    # the training images, which are then not trained on. False: train on all of these, for the last number, once all is
    # chosen
    hold_out: bool = True

    version: ClassVar[int] = 2  # the first trained on all training images, and told no score but that of the test
    chosen_by_hand: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{type(self).__name__}.warmup_epochs must be below epochs; got {self.warmup_epochs} of {self.epochs}. "
                f"Train longer, or warm up shorter."
            )

    @property
    @abstractmethod
    def optim(self) -> OptimConfig:
        """Optimiser and schedule."""


def train_heads(probe: AugmentedProbe, candidates: dict[str, Candidate], bench: Bench) -> dict[str, Scores]:
    """Scores by name; all contenders see the same augmented batches, and the seed also decides the heads."""
    train, parts = bench.train, dict(bench.opened.parts)
    assert train.labels is not None
    rows = held_out_rows(train.labels, probe.seed) if probe.hold_out and "val" not in parts else None
    if rows is not None:
        parts |= {"train": train.subset(rows["train"]), "val": train.subset(rows["test"])}
    classes = known_classes(torch.from_numpy(train.labels))
    for part, dataset in parts.items():
        assert dataset.labels is not None
        parts[part] = dataset.relabelled(renumber(torch.from_numpy(dataset.labels), classes, part).numpy())
    scores: dict[str, Scores] = {}
    for name, candidate in candidates.items():
        trained = _trained(probe, name, candidate, parts["train"], len(classes), bench)
        found = {part: score(trained, parts[part], probe.chunk, bench) for part in parts if part != "train"}
        scores[name] = found["test"] | ({"validation": found["val"]} if "val" in found else {})
    if rows is not None:
        for part, places in (("train", rows["train"]), ("val", rows["test"])):
            train.mark_broken({int(places[row]): why for row, why in parts[part].broken_reasons().items()})
    return scores


def _trained(
    probe: AugmentedProbe, name: str, candidate: Candidate, train: Dataset, num_classes: int, bench: Bench
) -> Probe:
    batch_size = min(probe.batch_size, len(train))
    micro = 1 if candidate.probe.head == "linear" else math.ceil(batch_size / probe.chunk)
    crop = replace(CROP, interpolation=Transform.of(bench.reference).interpolation)
    config = ProbeRun(
        recipe=f"{probe.name} ({name})",
        data=DataConfig(source=probe.data, images=probe.images, crop=crop),
        method=replace(candidate.probe, num_classes=num_classes, chunk=probe.chunk),
        optim=probe.optim,
        batch_size=batch_size // micro * micro,
        duration=Duration(epochs=probe.epochs),
        runtime=RuntimeConfig(
            seed=probe.seed, device=probe.device, precision="float32", accumulation=micro, tracker="none"
        ),
    )
    with torch.random.fork_rng(devices=[]):  # the same head for all, and nobody else's draws change
        torch.manual_seed(probe.seed)
        method = config.method.build(candidate.features, bench.reference.image_size, train.channels).to(bench.device)
        (encoder,) = frozen_hashes(method).values()
        folder = bench.work / f"{name}-{encoder[:8]}"
        try:
            pretrain(config, folder, method=method, dataset=train)
        except (NonFiniteError, MemoryFullError) as error:  # in the words of the evaluation's own settings
            rule = f"chunk must let a step fit in memory; got {probe.chunk} for {config.recipe}. Give a smaller chunk, "
            rule += "or batch size."
            if isinstance(error, NonFiniteError):
                rule = f"base_lr must keep the loss finite; got {probe.base_lr} for {config.recipe}. Give a lower rate."
            raise type(error)(f"{type(probe).__name__}.{rule}") from error
    method.model.load_state_dict(load_predictor(folder))  # a run that was complete before has trained nothing now
    return method.to(bench.device)


def score(probe: Probe, dataset: Dataset, chunk: int, bench: Bench) -> Scores:
    """On the centre of each image, a little magnified."""
    assert dataset.labels is not None
    needs, labels = probe.requirements, torch.from_numpy(dataset.labels)
    how: Any = {"margin": needs.test_margin, "interpolation": Transform.of(bench.reference).interpolation}
    images = evaluation_batches(dataset, needs.image_size, chunk, bench.device, **how)
    scores = probe.judge(probe.model, (Batch(batch, labels=labels[ids].to(bench.device)) for batch, ids in images))
    return {name: scores[name] for name in ("top1", "top1_per_class")}
