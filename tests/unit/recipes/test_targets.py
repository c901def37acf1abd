"""Recipes of MaskFeat, SimMIM, data2vec and CLIP's features, and the options that choose a target."""

from dataclasses import replace

import pytest
import torch

from pantomim.config import Pretrain, from_dict, to_dict, with_kind
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.explain import count_cost, explain
from pantomim.recipes.prepare import BARE_METHODS, RECIPES, prepare
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.choice import TeacherConfig

FACTS = Facts(size=(32, 32), median_shorter_side=32, channels=3, dtype="uint8", num_images=5000, num_classes=None)
STATS = Stats((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def recipe(name: str) -> Pretrain:
    return next(entry for entry in RECIPES if entry.name == name).build()


@pytest.mark.parametrize(
    ("name", "masked", "lr"),
    [
        ("maskfeat_vit_base_in1k", 78, 1.6e-3),
        ("simmim_vit_base_in1k", 120, 4e-4),
        ("data2vec_vit_base_in1k", 120, 2e-3),
        ("data2vec_vit_large_in1k", 120, 1e-3),
        ("clip_mim_vit_base_in1k", 80, 1e-3),  # 41 % of 196
        ("clip_mae_vit_base_in1k", 147, 2.4e-3),
    ],
)
def test_counts_and_rates_are_the_papers(name: str, masked: int, lr: float) -> None:
    config = recipe(name)
    assert config.method.masker.num_masked(config.method.encoder.grid) == masked
    assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(lr)
    assert from_dict(Pretrain, to_dict(config), name) == config


@pytest.mark.parametrize("name", ["maskfeat", "simmim", "data2vec"])
def test_bare_methods_take_any_images(name: str) -> None:
    config = BARE_METHODS[name].build("micro", FACTS, STATS, None)
    cost = count_cost(config, torch.float32)
    assert 0 < cost.trainable <= cost.parameters["all"]
    assert config.recipe == name
    sections = dict(explain(config, BARE_METHODS[name].paper(96), torch.float32))
    assert ("target.teacher" in dict(sections["Parts and shapes"])) == (name == "data2vec")
    assert ("source: ema" in dict(sections["Settings of the method"])["target"]) == (name == "data2vec")


def test_data2vec_forgets_in_proportion_to_its_length() -> None:
    small = BARE_METHODS["data2vec"].build("micro", FACTS, STATS, None)
    large = BARE_METHODS["data2vec"].build("micro", replace(FACTS, num_images=500_000), STATS, None)
    assert 0.99 < small.method.target.teacher.momentum < large.method.target.teacher.momentum < 1


def test_target_and_teacher_are_options() -> None:
    assert prepare("mae_micro_cifar10", target="hog").config.method.target == HOGTargetConfig()
    assert prepare("beit_micro_cifar10", target="pixels").config.method.target == PixelTargetConfig()
    led = prepare("cae_micro_cifar10", teacher="random").config.method.target
    assert led == FeatureTargetConfig(teacher=TeacherConfig("random"))
    kept = prepare("clip_mim_vit_base_in1k", teacher="somewhere").config.method.target
    assert kept.teacher == TeacherConfig("somewhere", output="projection")
    assert kept.distance == Distance("cosine")
    with pytest.raises(ValueError, match="--teacher goes with --target features; got ema and --target pixels"):
        prepare("mae_micro_cifar10", target="pixels", teacher="ema")
    with pytest.raises(ValueError, match="--tokenizer goes with --target tokens; got x and --target features"):
        prepare("mae_micro_cifar10", teacher="ema", tokenizer="x")


def test_a_target_of_another_kind_brings_its_own_settings() -> None:
    """Pixels are normalised and scored in their own ways."""
    config = prepare("mae_micro_cifar10").config
    for kind, target in (
        ("features", FeatureTargetConfig()),
        ("hog", HOGTargetConfig()),
        ("tokens", TokenTargetConfig()),
    ):
        assert with_kind(config, "method.target", kind).method.target == target
    assert prepare("mae_micro_cifar10", target="features").config.method.target == FeatureTargetConfig()


def test_a_teacher_that_is_not_named_is_not_counted() -> None:
    config = prepare("clip_mim_vit_base_in1k").config
    config = replace(config, method=replace(config.method, encoder=replace(config.method.encoder, depth=1)))
    cost = dict(dict(explain(config, config, torch.float32))["Cost"])
    assert "none is named yet" in cost["teacher"]
