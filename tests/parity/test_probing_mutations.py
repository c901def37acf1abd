"""The golden runs of probes notice: one thing is broken at a time, and an item must fail."""

import functools

import pytest
import torch
from golden_items import edited, failing, mutations, with_config
from torch import nn

from pantomim import optim
from pantomim.methods.probe import Frozen
from pantomim.nn import heads

MAE, LINEAR, ATTENTIVE = "trajectory_linprobe_mae_a", "trajectory_linear_cae_a", "trajectory_attentive_cae_a"
batch_norm, sgd, schedule = nn.BatchNorm1d, torch.optim.SGD, optim.Schedule.beit


def plain_momentum(groups, **settings):
    return sgd(groups, **settings | {"nesterov": False})


def mean_of_patches(classifier, images):
    return classifier.encoder(images).patches.mean(dim=1)


def trained(self, network, read):
    nn.Module.__init__(self)
    self.network, self.read = network, read


@mutations(
    another_eps=(ATTENTIVE, nn, "BatchNorm1d", functools.partial(batch_norm, eps=1e-6)),
    slower_statistics=(LINEAR, nn, "BatchNorm1d", functools.partial(batch_norm, momentum=0.01)),
    no_nesterov=(ATTENTIVE, torch.optim, "SGD", plain_momentum),
    no_trust_ratio=(MAE, optim, "_trust_ratio", lambda weight, update, coefficient: torch.ones(())),
    mean_of_patches=(LINEAR, heads.Classifier, "features", mean_of_patches),
    a_rate_one_step_late=(ATTENTIVE, optim.Schedule, "beit", lambda self, step: schedule(self, max(step - 1, 0))),
    a_trained_encoder=(MAE, Frozen, "__init__", trained),
)
def test_one_thing_wrong(monkeypatch, item, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    failing(item)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (MAE, {"trust_coefficient": 0.002}),
        (MAE, {"weight_decay": 0.01}),
        (MAE, {"pretrain_img_size": 48}),
        (LINEAR, {"accum_iter": 2}),
        (LINEAR, {"momentum": 0.8}),
        (ATTENTIVE, {"smoothing": 0.1}),
        (ATTENTIVE, {"clip_grad": 0.5}),
        (ATTENTIVE, {"weight_decay": 0.05}),
        (ATTENTIVE, {"num_heads": 2}),
        (ATTENTIVE, {"batch_norm_eps": 1e-6}),
    ],
    ids=str,
)
def test_what_the_config_states_is_what_is_rebuilt(tmp_path, name, changes):
    assert with_config(tmp_path, name, **changes).status == "FAIL"


@pytest.mark.parametrize("name", [LINEAR, ATTENTIVE])
def test_what_the_script_loads_is_compared(tmp_path, name):
    def edit(spec, tensors):
        tensors["pretrained/encoder.pos_embed"] += 0.01  # resampled by one script, passed over by the other
        tensors["pretrained/encoder.norm.weight"] += 0.01

    assert edited(tmp_path, name, edit).off == (2 if name == LINEAR else 1)
