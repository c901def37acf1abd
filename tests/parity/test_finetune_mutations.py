"""The item of fine-tuning's small pieces notices: one thing is wrong at a time, and it must fail."""

import numpy as np
import pytest
import torch
from golden_items import edited, failing, mutations

from pantomim.parity import finetuning

ITEM = "downstream_finetune_extras_a"
dealt, rate, relative, top1 = (
    finetuning._dealt,
    finetuning._transfer_rate,
    finetuning.corruption_errors,
    finetuning.subset_top1,
)


def over_all_classes(logits, subset, labels):
    return top1(logits, torch.arange(logits.shape[1]), subset[labels])


@mutations(
    average_of_before=(ITEM, finetuning, "follow", lambda copied, module, momentum: None),
    momentum_for_the_new=(ITEM, finetuning, "follow", lambda a, b, m, follow=finetuning.follow: follow(a, b, 1 - m)),
    whole_epoch=(ITEM, finetuning, "_dealt", lambda p, ranks, rank: p.repeat_interleave(3)[rank::ranks]),
    next_process=(ITEM, finetuning, "_dealt", lambda p, ranks, rank: dealt(p, ranks, (rank + 1) % ranks)),
    next_epoch=(ITEM, finetuning, "_transfer_rate", lambda schedule, epoch: rate(schedule, epoch + 1)),
    a_new_cosine=(ITEM, finetuning, "_transfer_rate", lambda schedule, epoch: schedule.mae(max(epoch - 1, 0))),
    worst_severity=(ITEM, finetuning, "corruption_errors", lambda e: relative({k: [max(v)] for k, v in e.items()})),
    other_networks_errors=(ITEM, finetuning, "ALEXNET_ERRORS", dict.fromkeys(finetuning.ALEXNET_ERRORS, 0.8)),
    all_classes=(ITEM, finetuning, "subset_top1", over_all_classes),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


@pytest.mark.parametrize("severities", [1, 3])
def test_other_numbers_of_severities_and_epochs(tmp_path, severities):
    def edit(spec, tensors):
        errors = tensors["in/errors"][:, :severities].contiguous()
        weights = tensors["in/weights"][:3].contiguous()
        alexnet = np.array(spec["numbers"]["alexnet_errors"])
        stated = 100 * errors.double().mean(1).numpy() / alexnet
        tensors |= {"in/errors": errors, "in/weights": weights, "out/averaged": tensors["out/averaged"][:2].clone()}
        tensors["out/corruption_error"][:] = tensors["out/corruption_error"].new_tensor(stated)
        tensors["out/mce"][:] = stated.mean()
        spec["outputs"]["tensors"]["averaged"]["shape"][0] = 2
        spec["config"]["steps"] = 2
        rows = spec["numbers"]["transfer_schedule (epoch, rate)"]
        del rows[20:]

    assert edited(tmp_path, ITEM, edit).status == "PASS"
