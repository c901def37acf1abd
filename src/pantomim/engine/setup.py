"""What is looked at before the first step, so that a run that cannot work never begins."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from pantomim.config import DataConfig, OptimConfig, Pretrain
from pantomim.data.dataset import Contents, Dataset, Facts, TooManyBrokenError
from pantomim.data.decoding import BrokenImageError
from pantomim.data.identity import Identity
from pantomim.data.layout import divide, part_names
from pantomim.data.masks import Masks, open_masked, read_masked
from pantomim.data.sources import divided, open_split, read_contents
from pantomim.data.stream import Stream
from pantomim.methods.base import Requirements
from pantomim.nn.vit import Encoder
from pantomim.optim import LARS, layer_scale, limit_training, parameter_groups

MOST_HELD_OUT = 10_000  # images, out of training ones


@dataclass(frozen=True)
class Images:
    """What a run learns from, and those images that it is judged by while it trains, if it is."""

    train: Dataset
    held_out: Dataset | None
    masks: Masks | None  # with the list of their classes
    facts: Facts  # of all training images, before some were held out
    held_back: Dataset | None = None  # no training images in any case, nor part of what a run is known by

    @property
    def parts(self) -> list[Dataset]:
        """Those there are."""
        return [self.train] if self.held_out is None else [self.train, self.held_out]

    def identity(self) -> Identity:
        """Of all images and their masks."""
        names = [name for part in self.parts for name in part.names]
        masks = [] if self.masks is None else [self.masks.identity(names)]
        return Identity.joined([*(part.identity() for part in self.parts), *masks])

    def mark_broken(self, reasons: Mapping[str, str]) -> None:
        """Skip what an earlier start has found broken, by name."""
        for part in self.parts if reasons else []:
            part.mark_broken({k: reasons[name] for k, name in enumerate(part.names) if name in reasons})

    def are_broken(self, names: Collection[str]) -> bool:
        """Whether none of these images, or masks, can be read any more, and they are few enough to be skipped."""
        key = str if self.masks is None else self.masks.stem
        wanted = {key(name) for name in names}
        for part in self.parts:
            for index, image in enumerate(part.names):
                if key(image) not in wanted:
                    continue
                try:
                    _ = part.read(index) if self.masks is None else self.masks.read_pair(part, index)
                except BrokenImageError:
                    continue
                return False
        return True


def open_images(
    config: Pretrain, dataset: Dataset | None = None, mask_classes: Mapping[int, str] | None = None
) -> Images:
    """The split train, or the part of it that the settings ask for, divided; or so much of a `dataset` in hand.

    Where all training images are used and the source has a split val beside its test split, that is held out; else a
    share of every class of the training images. The classes of masks that no list names are `mask_classes`, which an
    earlier start has found, else the ids that occur in any mask.
    """
    how, contents, masks = config.data, None, None
    if dataset is None:
        if not how.source:
            raise ValueError("DataConfig.source must name the images; got none. Give a folder, say.")
        if how.masks is None:
            contents = read_contents(how.source)
        else:
            name, ignore, zero = how.masks.name, how.masks.ignore, how.masks.reduce_zero
            contents, masks = read_masked(how.source, name, ignore=ignore, reduce_zero=zero)
            if not masks.names and mask_classes:
                masks = replace(masks, names=dict(mask_classes))
            elif not masks.names:
                masks = open_masked(how.source, name, ignore, reduce_zero=zero, tested=False).masks
        contents = replace(contents, scale=how.scale)
        whole = divided(contents, how.source, how.holdout)
        dataset = open_split(whole, how.source, "train")
        if masks is None and hasattr(config.method, "num_classes"):
            dataset = dataset.labelled()
        dataset = dataset.part(how.images, how.fraction, how.labels_per_class, how.draw)
    train, held_out = _hold_out(dataset, contents, config)
    held_back = None
    if contents is not None and held_out is None and not hasattr(config.method, "num_classes"):
        rows = whole.splits.get("val" if contents.splits else "test")
        with suppress(TooManyBrokenError):  # which is no reason not to train on the others
            if rows is not None and len(rows):
                held_back = Dataset(how.source, "held back", whole, rows, max_broken=1.0)
    return Images(train, held_out, masks, dataset.facts, held_back)


def _hold_out(dataset: Dataset, contents: Contents | None, config: Pretrain) -> tuple[Dataset, Dataset | None]:
    """Training images, and those that are held out, if any are."""
    if config.validation is None or config.validation.share == 0:
        return dataset, None
    if contents is not None and not config.data.partial and "val" in part_names(contents.splits):
        held_out = open_split(contents, config.data.source, "val")
        if config.data.masks is not None or not hasattr(config.method, "num_classes"):
            return dataset, held_out
        if (held_out := held_out.labelled()).labels is None:
            raise ValueError(
                f"Source.val must have labels, as training images have; got none in {config.data.source}. Sort them "
                f"into folders of classes, too, or take the part away: images are held out of train then."
            )
        return dataset, held_out
    share = min(config.validation.share, MOST_HELD_OUT / len(dataset))
    rows = divide(len(dataset), dataset.labels, seed=config.data.draw, share=share)
    if not len(rows["test"]):
        raise ValueError(
            f"Validation.share must leave an image to hold out; got {len(dataset)} images of {config.data.source}, no "
            f"class of which has two. Add images, or set validation.share to 0: the last step is then taken."
        )
    return dataset.subset(rows["train"]), dataset.subset(rows["test"])


def stream_opener(
    config: Pretrain, needs: Requirements, masks: Masks | None, device: torch.device, rank: int, world: int
) -> "partial[Stream]":
    """Opens the stream of a data set, given it and a batch size."""
    return partial(
        Stream,
        image_size=needs.image_size,
        crop=config.data.crop if config.data.masks is None else config.data.masks.crop,
        seed=config.runtime.seed,
        device=device,
        rank=rank,
        world=world,
        workers=config.data.workers,
        memory_gib=config.data.memory_gib,
        augment=config.data.augment if masks is None else None,
        masks=masks,
        second=config.data.second,
    )


def check_fit(
    config: Pretrain, dataset: Dataset, needs: Requirements, num_processes: int, masks: Masks | None = None
) -> None:
    """Refuse images that the method cannot use, and a batch that cannot be shared out; names every problem."""
    problems = []
    facts, source, accumulation = dataset.facts, config.data.source, config.runtime.accumulation
    if dataset.channels != needs.in_chans:
        problems.append(
            f"{needs.channels_setting} must be the channels of the images; got {needs.in_chans}, and {source} has "
            f"{dataset.channels}. Set it to {dataset.channels} with as many values of mean and std (`pantomim stats "
            f"{source}`), or give other images."
        )
    side = facts.median_shorter_side if facts.size is None else min(facts.size)
    if side < needs.patch_size:
        problems.append(
            f"{needs.patch_setting} must be at most the side of the images; got {needs.patch_size}, and {source} has "
            f"images of {side} pixels. Set it to {1 << side.bit_length() - 1}, or give larger images."
        )
    if needs.views == 2 and config.data.second is None:
        problems.append(
            f"DataConfig.second must say how the other view of an image is made, as {config.method.kind} compares two; "
            f"got none. Start from a recipe of {config.method.kind}, which has one."
        )
    if needs.views == 1 and config.data.second is not None:
        problems.append(
            f"DataConfig.second must be left out, as {config.method.kind} looks at one view of an image; got "
            f"{config.data.second}. Remove it."
        )
    if needs.masks and masks is None:
        problems.append(
            f"DataConfig.masks must say where the class of every pixel is, as {config.method.kind} learns it; got "
            f"none. pantomim segment sets it."
        )
    elif needs.num_classes is not None and masks is None and dataset.labels is None:
        problems.append(
            f"DataConfig.source must have a label for every image, as {config.method.kind} learns from them; got "
            f"{source}, which has none. Put the images of each class into one folder, give labels in an "
            f".npz or a list, or train without labels: pantomim pretrain mae."
        )
    elif needs.num_classes is not None:
        what, found = ("images", facts.num_classes) if masks is None else ("masks", len(masks.names))
        if found != needs.num_classes:
            problems.append(
                f"method.num_classes must be the classes of the {what}; got {needs.num_classes}, and {source} has "
                f"{found}. Set it to {found}."
            )
    for view in (config.data, config.data.second):
        problems += [] if view is None else view.augment.problems(dataset.channels, facts.dtype)
    if config.batch_size % (num_processes * accumulation):
        problems.append(
            f"Pretrain.batch_size must be a multiple of processes x accumulation = {num_processes} x {accumulation}; "
            f"got {config.batch_size}. Change one of the three."
        )
    if needs.masks and needs.gathers and config.batch_size // (num_processes * accumulation) < 2:
        problems.append(
            f"Pretrain.batch_size must give each process and micro-batch at least two images, over which batch norm "
            f"has its statistics; got {config.batch_size} for {num_processes} x {accumulation}. Raise it."
        )
    if needs.whole_batch and accumulation > 1:
        problems.append(
            f"RuntimeConfig.accumulation must be 1 for {config.method.kind}, whose loss of an image depends on "
            f"all others of its step; got {accumulation}. Use a smaller batch size, or more processes."
        )
    if needs.gathers and num_processes > 1 and config.runtime.compile is True:
        problems.append(
            f"RuntimeConfig.compile must be off for {config.method.kind} in several processes, which talk to each "
            f"other within a forward pass; got {num_processes} processes. Turn runtime.compile off."
        )
    rows = config.batch_size // (num_processes * accumulation)
    if needs.even and rows % 2:
        problems.append(
            f"Pretrain.batch_size must give each process and micro-batch an even number of images, as mixup and CutMix "
            f"mix them in pairs; got {rows}. Change it, or set method.mixup and method.cutmix to 0."
        )
    if problems:
        raise ValueError("\n".join(problems))


def describe_masks(config: DataConfig, masks: Masks | None) -> dict[str, Any]:
    """What is recorded of the masks that a model learned from; nothing where it learned from none."""
    if masks is None or config.masks is None:
        return {}
    ids = masks.class_ids()
    return {
        "classes": [masks.names[class_id] for class_id in ids],
        "class_ids": [class_id + masks.reduce_zero for class_id in ids],
        "no_class": 0 if masks.reduce_zero else masks.ignore,
        "ignore": masks.ignore,
        "reduce_zero": config.masks.reduce_zero,
        "test_size": list(config.masks.crop.base),
    }


def optimiser(config: OptimConfig, method: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters, in groups by weight decay and rate; what is frozen is in none."""
    encoder: Any = getattr(method, "encoder", None)
    if config.layer_decay != 1 and not isinstance(encoder, Encoder):
        raise ValueError(
            f"OptimConfig.layer_decay must be 1 for a method without an encoder, which has no such layers; got "
            f"{config.layer_decay}. Leave it out."
        )
    limit_training(encoder, config.freeze_blocks, **asdict(config.lora))
    spared = () if config.decay_relative else ("relative_position_bias_table",)
    groups = parameter_groups(
        method,
        config.weight_decay,
        decay_tokens=config.decay_tokens,
        decay_mask_token=config.decay_mask_token,
        decay_vectors=config.decay_vectors,
        spared=spared,
        **({} if config.layer_decay == 1 else {"lr_scale": layer_scale(encoder.depth, config.layer_decay)}),
    )
    if config.optimiser == "lars":
        return LARS(groups, lr=lr, momentum=config.momentum, trust_coefficient=config.trust_coefficient)
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)


def shorter(config: Pretrain) -> Pretrain:
    """The run before it was last extended."""
    return replace(config, duration=config.extended[-1], extended=config.extended[:-1])


def in_steps(config: Pretrain, steps_per_epoch: int) -> tuple[int, int]:
    """The length of a run and of its warm-up."""
    total, warmup = config.duration.in_steps(steps_per_epoch), config.optim.warmup.in_steps(steps_per_epoch)
    if config.duration.steps == 0:  # asked for by number: the run writes its initial encoder, a baseline
        return 0, 0
    if total < 1:
        raise ValueError(f"Pretrain.duration must be at least one step; got {config.duration}. Give a number of steps.")
    if warmup >= total:
        raise ValueError(
            f"OptimConfig.warmup must be shorter than the run; got {config.optim.warmup} of {config.duration}, which "
            f"is {warmup} of {total} steps. Train longer, or set optim.warmup.steps to {total // 20}."
        )
    return total, warmup


def describe_start(
    config: Pretrain, dataset: Dataset, judged: str, where: str, num_processes: int, start: int, total: int
) -> str:
    """What is about to happen, in one line; how it is `judged` goes before the machine."""
    where += f", {num_processes} processes" if num_processes > 1 else ""
    doing = f"Resuming {config.recipe} from step {start}" if start else f"Training {config.recipe}"
    images = f"{config.batch_size} images out of {len(dataset)} ({dataset.name})"
    return f"{doing}: {total} steps of {images}{judged}, on {where}. Values: {dataset.scale.rule}."
