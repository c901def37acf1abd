"""The supervised recipes say what DeiT says; the data decide the classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_images

from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.explain import count_cost, explain
from pantomim.recipes import RECIPES, prepare
from pantomim.recipes.recipe import differences
from pantomim.recipes.supervised import (
    supervised,
    supervised_micro_cifar10,
    supervised_vit_base_in1k,
    supervised_vit_small_in1k,
)


def test_table_9_of_deit() -> None:
    for config, parameters in ((supervised_vit_small_in1k(), 22_050_664), (supervised_vit_base_in1k(), 86_567_656)):
        assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(1e-3)  # 5e-4 x 1024 / 512
        assert (config.optim.weight_decay, config.optim.betas, config.optim.min_lr) == (0.05, (0.9, 0.999), 1e-5)
        assert (config.optim.warmup.epochs, config.duration.epochs, config.batch_size) == (5, 300, 1024)
        method, augment = config.method, config.data.augment
        assert (method.label_smoothing, method.mixup, method.cutmix, method.pool) == (0.1, 0.8, 1.0, "class")
        assert method.encoder.drop_path == 0.1
        assert (augment.rand_augment, augment.rand_magnitude, augment.rand_std) == (2, 9.0, 0.5)
        assert (augment.erasing, augment.jitter) == (0.25, (0.0,) * 4)
        cost = count_cost(config, torch.float32)  # the sizes of timm's deit_small and deit_base
        assert cost.parameters["all"] == cost.trainable == parameters


def test_small_recipes_stand_beside_maes() -> None:
    ours, theirs = supervised_micro_cifar10(), next(r for r in RECIPES if r.name == "mae_micro_cifar10").build()
    names = {name for name, *_ in differences(ours, theirs)}
    assert all(name.startswith(("method.", "data.augment.")) for name in names)
    assert not any(name.startswith("method.encoder.") for name in names)
    assert ours.data.augment.mean == ours.method.encoder.mean


def facts(**changes) -> Facts:
    given = {"num_images": 500, "channels": 3, "size": (32, 32), "median_shorter_side": 32, "dtype": "uint8"}
    return Facts(**{**given, "num_classes": 7, **changes})


def test_the_data_decide_the_classes() -> None:
    config = supervised("micro", facts(), Stats((0.5,) * 3, (0.2,) * 3))
    assert config.method.num_classes == 7
    assert config.data.augment.rand_augment == 2
    gray = supervised("micro", facts(channels=1), Stats((0.5,), (0.2,)))
    assert (gray.data.augment.rand_augment, gray.data.augment.mean) == (0, (0.5,))
    assert gray.data.augment.problems(1, "uint8") == []
    with pytest.raises(ValueError, match="learns from labels; got images without them"):
        supervised("micro", facts(num_classes=None), Stats((0.5,) * 3, (0.2,) * 3))


def test_from_a_source(tmp_path: Path) -> None:
    prepared = prepare("supervised", data=str(tiny_images(tmp_path / "a.npz")), size="micro", epochs=3)
    assert prepared.config.method.num_classes == 4
    assert ("classes", "4") in prepared.decided
    with np.load(tmp_path / "a.npz") as arrays:
        np.savez(tmp_path / "b.npz", images=arrays["images"])
    with pytest.raises(ValueError, match="train without labels: pantomim pretrain mae"):
        prepare("supervised", data=str(tmp_path / "b.npz"))
    with pytest.raises(ValueError, match="got them for supervised, a run of supervised"):
        prepare("supervised", data=str(tmp_path / "a.npz"), target="pixels")


def test_explain_names_every_ingredient() -> None:
    config = supervised_vit_small_in1k()
    sections = dict(explain(config, config, torch.float32))
    settings, training = dict(sections["Settings of the method"]), dict(sections["Training"])
    assert (settings["mixup"], settings["cutmix"]) == ("0.8", "1.0")
    assert dict(sections["Parts and shapes"])["encoder"].endswith("patches B x 196 x 384")
    assert training["augmentation"] == "rand_augment 2, erasing 0.25"
