"""Linear probe on cached features: many learning rates at once, the best one chosen on held-out training images.

Standardised features and a linear softmax classifier, trained by SGD with momentum from zero weights, without weight
decay. The problem is convex, so plain SGD gets there, and the learning rate is the only thing that matters; LARS and
AdamW are answers to very large batches and to deep networks. All rates see the same batches: one matrix product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pantomim.core.frozen import frozen
from pantomim.evaluate.parts import Parts
from pantomim.evaluate.scores import Outcome, best_view, top1
from pantomim.optim import cosine_schedule

MOMENTUM = 0.9


@frozen
class LinearProbe:
    """How the probe is trained.

    Args:
        lrs: Learning rates to choose from.
        epochs: Passes over the training images.
        batch_size: Images a step.
    """

    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    epochs: int = 100
    batch_size: int = 512

    def __post_init__(self) -> None:
        if not self.lrs or min(self.lrs) <= 0:
            raise ValueError(f"LinearProbe.lrs must be positive, at least one; got {self.lrs}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"LinearProbe.{name} must be at least 1; got {getattr(self, name)}.")


@dataclass(frozen=True)
class Standardiser:
    """Subtracts the training mean and divides by the training deviation; constant features become zero."""

    mean: Float[Tensor, " D"]
    inverse: Float[Tensor, " D"]

    @classmethod
    def of(cls, features: Float[Tensor, "n D"]) -> "Standardiser":
        """Measured on these features."""
        mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
        constant = std <= 1e-6 * (mean.abs() + std.mean())
        return cls(mean, torch.where(constant, torch.zeros_like(std), 1 / std.clamp(min=1e-30)))

    def __call__(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """Standardised features."""
        return (features - self.mean) * self.inverse


def linear(parts: Parts, probe: LinearProbe, *, seed: int, device: torch.device) -> dict[str, Any]:
    """Scores of one contender; rate and view are chosen on the validation part, then all of train is learned from."""
    assert parts.test.labels is not None
    assert parts.train.labels is not None
    assert parts.fit.labels is not None
    assert parts.validation.labels is not None
    outcomes = {}
    for view in parts.views:
        fit, validation = parts.fit.views[view].to(device), parts.validation.views[view].to(device)
        candidates = train_probes(fit, parts.fit.labels, parts.num_classes, probe.lrs, probe, seed=seed)
        predictions = candidates(validation).argmax(dim=-1).cpu()
        scores = [top1(guess, parts.validation.labels) for guess in predictions]
        best = max(range(len(scores)), key=lambda index: scores[index])  # the smallest rate of the best ones
        lr = probe.lrs[best]
        final = candidates.one(best)
        if parts.train is not parts.fit:
            train = parts.train.views[view].to(device)
            final = train_probes(train, parts.train.labels, parts.num_classes, (lr,), probe, seed=seed)
        guess = final(parts.test.views[view].to(device))[0].argmax(dim=-1).cpu()
        outcomes[view] = Outcome(scores[best], {"lr": lr}, guess)
    return best_view(outcomes, parts.test.labels)


@dataclass(frozen=True)
class Probes:
    """L linear classifiers on the same standardised features."""

    standardise: Standardiser
    weight: Float[Tensor, "D L C"]
    bias: Float[Tensor, "L C"]

    def __call__(self, features: Float[Tensor, "n D"], chunk: int = 4096) -> Float[Tensor, "L n C"]:
        """Logits of all classifiers."""
        flat = self.weight.flatten(1)
        logits = [
            (self.standardise(part) @ flat).unflatten(1, self.bias.shape) + self.bias for part in features.split(chunk)
        ]
        return torch.cat(logits).transpose(0, 1)

    def one(self, index: int) -> "Probes":
        """The classifier of one rate."""
        return Probes(self.standardise, self.weight[:, index : index + 1], self.bias[index : index + 1])


def train_probes(
    features: Float[Tensor, "n D"],
    targets: Int[Tensor, " n"] | Float[Tensor, "n C"],
    num_classes: int,
    lrs: tuple[float, ...],
    probe: LinearProbe,
    *,
    seed: int,
) -> Probes:
    """Train one classifier a learning rate, all on the same batches; cosine schedule to zero.

    The gradient of the mean cross-entropy is written out: softmax minus target, times the features. Examples come last
    in memory, because a softmax over a few classes that lie side by side takes ten times as long on a CPU.

    Args:
        features: One row an example.
        targets: Class ids, or for each row the shares of the classes; a row whose shares sum to less than one counts
            less.
        num_classes: Outputs of a classifier.
        lrs: One classifier each.
        probe: How long to train, on batches of how many rows.
        seed: Of the order.
    """
    device, num_rates = features.device, len(lrs)
    standardise = Standardiser.of(features)
    features, targets = standardise(features), targets.to(device)
    weight = features.new_zeros(num_classes, num_rates, features.shape[1])
    bias = features.new_zeros(num_classes, num_rates)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = torch.tensor(lrs, dtype=features.dtype, device=device)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(probe.batch_size, len(features))
    steps_per_epoch = len(features) // batch_size
    total = probe.epochs * steps_per_epoch
    for step in range(total):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(features), generator=generator).to(device)
        rows = order[step % steps_per_epoch * batch_size :][:batch_size]
        inputs, wanted = features.index_select(0, rows), targets.index_select(0, rows)
        logits = (weight.flatten(0, 1) @ inputs.T).view(num_classes, num_rates, batch_size) + bias[:, :, None]
        error = logits.softmax(dim=0) / batch_size  # (C, L, B)
        if wanted.dim() == 1:
            error[wanted, :, torch.arange(batch_size, device=device)] -= 1 / batch_size
        else:
            error.mul_(wanted.sum(dim=1)).sub_((wanted.T / batch_size)[:, None])
        lr = rates * cosine_schedule(step, base=1.0, minimum=0.0, warmup=0, total=total)
        weight_momentum.mul_(MOMENTUM).add_((error.flatten(0, 1) @ inputs).view_as(weight))
        bias_momentum.mul_(MOMENTUM).add_(error.sum(dim=2))
        weight.sub_(lr[:, None] * weight_momentum)
        bias.sub_(lr * bias_momentum)
    return Probes(standardise, weight.permute(2, 1, 0).contiguous(), bias.T.contiguous())
