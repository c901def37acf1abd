"""Small pieces of fine-tuning: weight average, repeated augmentation, the transfer schedule, scores of shifted sets.

Official: liuxingbin/dbot (`evaluation/eval_cls.py`), timm, google-research/augmix.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pantomim.data.layout import repeated_order
from pantomim.evaluate.robustness import ALEXNET_ERRORS, corruption_errors, subset_top1
from pantomim.nn.momentum import follow
from pantomim.optim import transfer_schedule
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
        permutation, ranks = item.input(f"permutation_{number}").numpy(), sampler["replicas"]
        for rank in range(ranks):
            order = repeated_order(permutation, ranks=ranks, rank=rank)
            found[f"repeated_{number}/rank_{rank}"] = torch.from_numpy(order)
    stated = item.config["schedule"]
    rates = {"base": stated["lr"], "minimum": stated["min_lr"], "start": stated["warmup_lr"]}
    length = {"warmup": stated["warmup"], "total": stated["epochs"]}
    rows = [[epoch, transfer_schedule(epoch, **rates, **length)] for epoch, _ in item.numbers[SCHEDULE]]
    known = {"corruptions": list(ALEXNET_ERRORS), "alexnet_errors": [ALEXNET_ERRORS[name] for name in names]}
    return Computed(found, {SCHEDULE: rows, **known})


def _averages(weights: Tensor, decay: float) -> Iterator[Tensor]:
    """The moving average after each step, from the weights of all steps; it begins as the first."""
    module = nn.ParameterList([weights[0].clone()])
    average = copy.deepcopy(module)
    for step in weights[1:]:
        module[0].data = step
        follow(average, module, decay)
        yield average[0].detach().clone()


ITEMS = (downstream_finetune_extras,)
