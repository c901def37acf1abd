"""Linear probe on cached features: many learning rates at once, the best one chosen on held-out training images.

A softmax classifier on standardised features, by SGD with momentum from zero weights, without weight decay: the problem
is convex, and only the learning rate matters. All rates see the same batches: one matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.core.progress import tracked
from pantomim.core.ranges import AtLeastOne, Positive
from pantomim.core.schedule import half_cosine
from pantomim.evaluate.base import Bench, Evaluation, Scores
from pantomim.evaluate.parts import Outcome, Tables, best_view, top1

MOMENTUM = 0.9


@frozen
class Linear(Evaluation):
    """A linear classifier on cached features: many learning rates at once, the best on held-out images is taken."""

    protocol: tyro.conf.Suppress[Literal["linear"]] = "linear"
    lrs: tuple[Positive, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)  # Learning rates to choose from
    epochs: AtLeastOne = 100  # Passes over the training images
    batch_size: AtLeastOne = 512  # Images a step

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates("Linear", self.lrs)

    def run(self, bench: Bench) -> dict[str, Scores]:
        """Of every contender on its own."""
        return {name: self.score(parts, bench.device) for name, parts in bench.tables()}

    def score(self, parts: Tables, device: torch.device) -> Scores:
        """Scores of one contender; rate and view are chosen on the validation part, then all of train is used."""
        length = {"epochs": self.epochs, "batch_size": self.batch_size, "seed": self.seed}
        outcomes = {}
        for view in parts.train.views:
            fit, validation = parts.fit.views[view].to(device), parts.validation.views[view].to(device)
            candidates = train_probes(fit, parts.fit.known_labels, parts.num_classes, self.lrs, **length)
            guesses = candidates(validation).argmax(dim=-1).cpu()
            scores = [top1(guess, parts.validation.known_labels) for guess in guesses]
            best = max(range(len(scores)), key=lambda index: scores[index])  # the smallest rate of the best ones
            final = candidates.one(best)
            if parts.train is not parts.fit:
                train, labels = parts.train.views[view].to(device), parts.train.known_labels
                final = train_probes(train, labels, parts.num_classes, (self.lrs[best],), **length)
            guess = final(parts.test.views[view].to(device))[0].argmax(dim=-1).cpu()
            outcomes[view] = Outcome(scores[best], {"lr": self.lrs[best]}, guess)
        return best_view(outcomes, parts.test.known_labels)


def check_rates(owner: str, lrs: tuple[float, ...]) -> None:
    """Refuse an empty choice of learning rates."""
    if not lrs:
        raise ValueError(f"{owner}.lrs must name at least one learning rate; got none.")


def standardiser(features: Float[Tensor, "n D"]) -> Callable[[Float[Tensor, "m D"]], Float[Tensor, "m D"]]:
    """Subtracts the mean of these features and divides by their std; constant ones become zero."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    constant = std <= 1e-6 * (mean.abs() + std.mean())
    inverse = torch.where(constant, torch.zeros_like(std), 1 / std.clamp(min=1e-30))
    return lambda values: (values - mean) * inverse


@dataclass(frozen=True)
class Probes:
    """L linear classifiers on the same standardised features."""

    standardise: Callable[[Float[Tensor, "n D"]], Float[Tensor, "n D"]]
    weight: Float[Tensor, "D L C"]
    bias: Float[Tensor, "L C"]

    def __call__(self, features: Float[Tensor, "n D"], chunk: int = 4096) -> Float[Tensor, "L n C"]:
        """Logits of all classifiers."""
        flat = torch.cat([self.standardise(part) @ self.weight.flatten(1) for part in features.split(chunk)])
        return (flat.unflatten(1, self.bias.shape) + self.bias).transpose(0, 1)

    def one(self, index: int) -> "Probes":
        """The classifier of one rate."""
        return Probes(self.standardise, self.weight[:, index : index + 1], self.bias[index : index + 1])


def train_probes(
    features: Float[Tensor, "n D"],
    targets: Int[Tensor, " n"] | Float[Tensor, "n C"],
    num_classes: int,
    lrs: tuple[float, ...],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Probes:
    """Train one classifier a learning rate, all on the same batches; cosine schedule to zero.

    The gradient of the mean cross-entropy is written out: softmax minus target, times the features. Examples come last
    in memory, because a softmax over a few classes that lie side by side takes ten times as long on a CPU.

    Targets are class ids, or shares of the classes in each row; one whose shares sum to less than one counts less.
    """
    device, num_rates = features.device, len(lrs)
    standardise = standardiser(features)
    features, targets = standardise(features), targets.to(device)
    weight = features.new_zeros(num_classes, num_rates, features.shape[1])
    bias = features.new_zeros(num_classes, num_rates)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = torch.tensor(lrs, dtype=features.dtype, device=device)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    total = epochs * steps_per_epoch
    for step in tracked(range(total), "linear classifiers: steps", total):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(features), generator=generator).to(device)
        rows = order[step % steps_per_epoch * batch_size :][:batch_size]
        inputs, target = features.index_select(0, rows), targets.index_select(0, rows)
        logits = (weight.flatten(0, 1) @ inputs.T).view(num_classes, num_rates, batch_size) + bias[:, :, None]
        error = logits.softmax(dim=0) / batch_size  # (C, L, B)
        if target.dim() == 1:
            error[target, :, torch.arange(batch_size, device=device)] -= 1 / batch_size
        else:
            error.mul_(target.sum(dim=1)).sub_((target.T / batch_size)[:, None])
        lr = rates * half_cosine(1.0, 0.0, step / total)
        weight_momentum.mul_(MOMENTUM).add_((error.flatten(0, 1) @ inputs).view_as(weight))
        bias_momentum.mul_(MOMENTUM).add_(error.sum(dim=2))
        weight.sub_(lr[:, None] * weight_momentum)
        bias.sub_(lr * bias_momentum)
    return Probes(standardise, weight.permute(2, 1, 0).contiguous(), bias.T.contiguous())
