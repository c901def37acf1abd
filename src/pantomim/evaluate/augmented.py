"""Heads on frozen encoders, trained on augmented images as MAE's and CAE's authors do it: what these two share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pantomim.data.stream import Stream, evaluation_batches
from pantomim.data.transforms import Crop
from pantomim.evaluate.base import Bench, Scores
from pantomim.evaluate.parts import known_classes, renumber
from pantomim.evaluate.scores import top1, top1_per_class

CROP = Crop(kind="single_draw", scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3), flip=True)
TEST_MARGIN = 256 / 224  # the test image's shorter side over the crop's


@dataclass(frozen=True)
class Candidate:
    """One contender.

    Args:
        features: Frozen; images in, what the head reads out.
        head: Makes a head from the width of the features and the number of classes.
    """

    features: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B ... D"]]
    head: Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Training:
    """How heads are trained.

    Args:
        epochs: Passes over the training images.
        batch_size: Images a step, at most; a multiple of `micro` is taken.
        micro: Parts of a batch that the encoder sees one after another.
        whole: Whether the head sees the batch as one, and normalises over all of it, or part by part.
        lr: Rate of a step, from the number of steps an epoch and the number of images a step.
        optimiser: Of a head's parameters; its rate is set before each step.
    """

    epochs: int
    batch_size: int
    micro: int
    whole: bool
    lr: Callable[[int, int, int], float]
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def train_heads(candidates: dict[str, Candidate], bench: Bench, how: Training) -> dict[str, Scores]:
    """Scores by name; all contenders see the same augmented batches, and the seed also decides the heads."""
    train, device, seed = bench.train, bench.device, bench.evaluation.seed
    assert train.labels is not None
    classes = known_classes(torch.from_numpy(train.labels))
    batch_size = how.batch_size // how.micro * how.micro
    size = bench.reference.image_size
    stream = Stream(train, batch_size=batch_size, image_size=size, crop=CROP, seed=seed, device=device, micro=how.micro)
    heads: dict[str, nn.Module] = {}
    optimisers: dict[str, torch.optim.Optimizer] = {}
    for step, batches in enumerate(stream.batches(0, how.epochs * stream.steps_per_epoch)):
        lr = how.lr(step, stream.steps_per_epoch, batch_size)
        groups = [batches] if how.whole else [[batch] for batch in batches]
        targets = [torch.cat([batch.labels for batch in group if batch.labels is not None]).cpu() for group in groups]
        targets = [renumber(labels, classes, "train").to(device) for labels in targets]
        for name, candidate in candidates.items():
            for group, target in zip(groups, targets, strict=True):
                with torch.no_grad():
                    features = torch.cat([candidate.features(batch.images).float() for batch in group])
                if name not in heads:
                    heads[name] = seeded_head(candidate, features.shape[-1], len(classes), seed).to(device)
                    optimisers[name] = how.optimiser(list(heads[name].train().parameters()))
                (F.cross_entropy(heads[name](features), target) / len(groups)).backward()
            for settings in optimisers[name].param_groups:
                settings["lr"] = lr
            optimisers[name].step()
            optimisers[name].zero_grad()
    predictions, labels = predict(candidates, heads, bench)
    truth = renumber(labels, classes, "test")
    return {
        name: {"top1": top1(guess, truth), "top1_per_class": top1_per_class(guess, truth)}
        for name, guess in predictions.items()
    }


def seeded_head(candidate: Candidate, width: int, num_classes: int, seed: int) -> nn.Module:
    """A head whose weights depend on the seed alone, not on which contenders came before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return candidate.head(width, num_classes)


@torch.inference_mode()
def predict(
    candidates: dict[str, Candidate], heads: dict[str, nn.Module], bench: Bench
) -> tuple[dict[str, Int[Tensor, " n"]], Int[Tensor, " n"]]:
    """Predictions of heads in evaluation mode on the centre of each image, a little magnified; and the labels."""
    assert bench.test.labels is not None
    height, width = bench.reference.image_size
    larger = (round(height * TEST_MARGIN), round(width * TEST_MARGIN))
    top, left = (larger[0] - height) // 2, (larger[1] - width) // 2
    guesses: dict[str, list[Tensor]] = {name: [] for name in candidates}
    labels: list[Tensor] = []
    for images, indices in evaluation_batches(bench.test, larger, bench.evaluation.chunk, bench.device):
        images = images[:, :, top : top + height, left : left + width]
        for name, candidate in candidates.items():
            logits = heads[name].eval()(candidate.features(images).float())
            guesses[name].append(logits.argmax(dim=1).cpu())
        labels.append(torch.from_numpy(bench.test.labels[indices]))
    return {name: torch.cat(parts) for name, parts in guesses.items()}, torch.cat(labels)


def check_warmup(owner: str, warmup_epochs: int, epochs: int) -> None:
    """Refuse a warm-up that leaves nothing of the run."""
    if warmup_epochs >= epochs:
        raise ValueError(
            f"{owner}.warmup_epochs must be below epochs; got {warmup_epochs} of {epochs}. Train longer, or warm up "
            f"shorter."
        )
