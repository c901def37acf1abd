"""Small pieces of fine-tuning: weight average, repeated augmentation, the transfer schedule, scores of shifted sets.

Official: liuxingbin/dbot (`evaluation/eval_cls.py`), timm, google-research/augmix.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pantomim.evaluate.robustness import ALEXNET_ERRORS, corruption_errors, subset_top1
from pantomim.nn.momentum import follow
from pantomim.optim import Schedule
from pantomim.parity.item import Computed, Item

SCHEDULE = "transfer_schedule (epoch, rate)"


def downstream_finetune_extras(item: Item) -> Computed:
    """Each piece on its own numbers; AlexNet's errors are ours."""
    names, subset = item.numbers["corruptions"], item.input("subset")
    relative = corruption_errors(dict(zip(names, item.input("errors").tolist(), strict=True)))
    errors, logits = torch.tensor(list(relative.values()), dtype=torch.float64), item.input("logits")
    labels, everything = item.input("subset_labels"), torch.arange(logits.shape[1])
    found = {
        "averaged": torch.stack(list(_averages(item.input("weights"), item.config["ema_decay"]))),
        "corruption_error": 100 * errors,
        "mce": 100 * errors.mean(),
        "subset_top1": torch.tensor(subset_top1(logits, subset, labels), dtype=torch.float64),
        "wrong_top1_over_all_classes": torch.tensor(
            subset_top1(logits, everything, subset[labels]), dtype=torch.float64
        ),
    }
    for number, sampler in enumerate(item.config["samplers"]):
        ranks = sampler["replicas"]
        for rank in range(ranks):
            found[f"repeated_{number}/rank_{rank}"] = _dealt(item.input(f"permutation_{number}"), ranks, rank)
    stated = item.config["schedule"]
    schedule = Schedule(stated["lr"], stated["min_lr"], stated["warmup"], stated["epochs"], stated["warmup_lr"])
    rows = [[epoch, _transfer_rate(schedule, epoch)] for epoch, _ in item.numbers[SCHEDULE]]
    known = {"corruptions": list(ALEXNET_ERRORS), "alexnet_errors": [ALEXNET_ERRORS[name] for name in names]}
    return Computed(found, {SCHEDULE: rows, **known})


def _dealt(permutation: Tensor, ranks: int, rank: int) -> Tensor:
    """What one process sees of images that come three times in a row, in an epoch as long as one without repeats.

    Source: DeiT's sampler, which dBOT's transfer runs use; it cuts an epoch down to a multiple of 256 images.
    """
    order = permutation.repeat_interleave(3)
    padded = torch.cat([order, order[: -len(order) % ranks]])  # the same number for all processes
    return padded[rank::ranks][: len(permutation) // 256 * 256 // ranks]


def _transfer_rate(schedule: Schedule, epoch: float) -> float:
    """By whole epochs, an epoch late, as timm's scheduler is told the epoch that is over; one cosine over all epochs.

    Source: dBOT's `evaluation/eval_cls.py`.
    """
    over = max(math.floor(epoch) - 1, 0)
    return schedule.mae(over) if over < schedule.warmup else replace(schedule, warmup=0).mae(over)


def _averages(weights: Tensor, decay: float) -> Iterator[Tensor]:
    """The moving average after each step, from the weights of all steps; it begins as the first."""
    module = nn.ParameterList([weights[0].clone()])
    average = copy.deepcopy(module)
    for step in weights[1:]:
        module[0].data = step
        follow(average, module, decay)
        yield average[0].detach().clone()


ITEMS = (downstream_finetune_extras,)
