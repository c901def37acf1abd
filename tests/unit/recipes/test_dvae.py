"""Recipes of discrete auto-encoders: what the data decide, and schedules that follow the run's length."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from pantomim.config import DataConfig, Duration, Pretrain, to_yaml
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.recipes import TOKENIZER_RECIPES, prepare
from pantomim.recipes.dvae import DVAE, TOKENIZER_SIZES, choose_vocabulary, dvae_paper, fitted

prepare_tokenizer = partial(prepare, trains="tokenizer")
HALF = Stats((0.5,) * 3, (0.5,) * 3)


def dvae(size: str, known: Facts) -> Pretrain:
    return DVAE.fit(size, known, HALF)


def facts(size=(32, 32), median=32, num_images=1000, dtype="uint8", channels=3) -> Facts:
    return Facts(num_images, channels, size, median, dtype, None)


@pytest.mark.parametrize("recipe", DVAE.others, ids=lambda recipe: recipe.name)
def test_every_recipe_builds_with_schedules_of_its_length(recipe) -> None:
    config = recipe.config
    with torch.device("meta"):
        method = config.method.build()
    assert method.requirements.image_size == (32, 32)
    assert config.method.sizes.stride == 4  # one code for each patch of MAE's small recipes
    assert recipe.summary.endswith(".")
    assert fitted(config, 50_000) == config


def test_the_published_run() -> None:
    config = dvae_paper()
    assert (config.method.temperature.steps, config.method.kl_weight.steps) == (150_000, 5_000)
    assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(1e-4)
    assert (config.batch_size, config.duration.steps, config.method.sizes.vocabulary) == (512, 3_000_000, 8192)


@pytest.mark.parametrize(
    ("size", "median", "image_size", "stride"),
    [
        ((32, 32), 32, (32, 32), 4),
        ((28, 28), 28, (28, 28), 2),
        ((64, 96), 64, (64, 96), 8),
        ((70, 67), 67, (64, 64), 8),
        ((224, 224), 224, (112, 112), 8),
        (None, 500, (112, 112), 8),
        (None, 50, (48, 48), 4),
        ((9, 2), 2, (8, 2), 2),
    ],
)
def test_sizes_follow_the_images(size, median, image_size, stride) -> None:
    method = dvae("micro", facts(size, median)).method
    assert (method.image_size, method.sizes.stride) == (image_size, stride)


def test_vocabulary_and_batch_follow_the_number_of_images() -> None:
    assert [choose_vocabulary(n) for n in (99_999, 100_000, 1_000_000)] == [512, 2048, 8192]
    assert dvae("micro", facts(num_images=20)).batch_size == 16
    assert dvae("micro", facts(channels=1)).method.sizes.in_chans == 1


@pytest.mark.parametrize(
    ("size", "num_images", "steps"),
    [
        ("small", 74, 1_000),  # not 17,000 passes over a few photos
        ("small", 3_200, 5_000),
        ("small", 50_000, 20_000),
        ("micro", 74, 1_000),
        ("micro", 10_000, 3_000),
    ],
)
def test_the_length_follows_the_number_of_images(size, num_images, steps) -> None:
    config = dvae(size, facts(num_images=num_images))
    assert config.duration == Duration(steps=steps)
    assert (config.method.temperature.steps, config.method.kl_weight.steps) == (steps // 2, steps // 20)


def test_a_micro_one_is_trained_as_the_measured_one() -> None:
    ours, measured = dvae("micro", facts(num_images=10_000)), TOKENIZER_RECIPES[0].config
    assert fitted(ours, 10_000).method == measured.method
    assert (ours.batch_size, ours.optim, ours.duration) == (measured.batch_size, measured.optim, measured.duration)
    weights = [dvae(size, facts()).method.kl_weight.end for size in TOKENIZER_SIZES]
    assert weights == [1.0, 1.0, 6.6, 6.6]


def test_schedules_follow_the_length_unless_given() -> None:
    config = replace(dvae("small", facts(num_images=640)), duration=Duration(epochs=20))  # of 10 steps each
    method = fitted(config, 640).method
    assert (method.temperature.steps, method.kl_weight.steps, method.momentum) == (100, 10, 0.99)
    assert fitted(replace(config, batch_size=32), 640).method.temperature.steps == 200
    long = replace(config, duration=Duration(steps=10_000))
    assert fitted(long, 640).method.momentum == 0.999
    given = replace(config, method=replace(config.method, momentum=0.5))
    kept = fitted(given, 640, ["method.momentum", "method.temperature.steps"]).method
    assert (kept.momentum, kept.temperature, kept.kl_weight.steps) == (0.5, config.method.temperature, 10)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_pixels_without_a_range(dtype) -> None:
    with pytest.raises(ValueError, match=f"images must be uint8 or uint16 .* got {dtype}. Convert them"):
        dvae("micro", facts(dtype=dtype))


def test_images_of_one_pixel() -> None:
    with pytest.raises(ValueError, match="image_size must be at least 2x2"):
        dvae("micro", facts((1, 1), 1))


def test_what_does_not_go_together(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"prepare\.data must be given"):
        prepare_tokenizer(None, data=None)
    with pytest.raises(ValueError, match="There is no recipe mae"):
        prepare_tokenizer("mae", data="mnist")
    with pytest.raises(
        ValueError, match=r"prepare\.size goes with a bare method \(dvae, vqkd\); dvae_micro_cifar10 fixes its size"
    ):
        prepare_tokenizer("dvae_micro_cifar10", data="mnist", size="small")
    with pytest.raises(ValueError, match=r"prepare\.teacher must be left out .* got them for dvae, a run of dvae"):
        prepare_tokenizer("dvae", data="mnist", teacher="random")
    with pytest.raises(ValueError, match=r"prepare\.recipe must be left out beside prepare\.config"):
        prepare_tokenizer("dvae", data="mnist", config=tmp_path)


def test_a_file_keeps_its_schedules_unless_the_length_changes(tmp_path) -> None:
    given = replace(dvae("micro", facts(num_images=640)), data=DataConfig(source="mnist"))
    (tmp_path / "config.yaml").write_text(to_yaml(given))
    prepared = prepare_tokenizer(None, data=None, config=tmp_path / "config.yaml")
    assert (prepared.config, prepared.num_images) == (given, None)
    prepared = prepare_tokenizer(None, data=None, config=tmp_path / "config.yaml", steps=40)
    assert (prepared.config.duration.steps, prepared.num_images) == (40, 4000)
    assert fitted(prepared.config, prepared.num_images or 0).method.temperature.steps == 20


def test_a_file_of_another_run(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(prepare("mae_micro_mnist").config))
    with pytest.raises(ValueError, match=r"must be of a run that trains a tokenizer; got .* a run of mae_micro_mnist"):
        prepare_tokenizer(None, data=None, config=tmp_path / "config.yaml")


def test_the_data_decide() -> None:
    prepared = prepare_tokenizer(None, data="mnist", size="micro", steps=100)
    method = prepared.config.method
    assert (method.sizes.in_chans, method.image_size, prepared.num_images) == (1, (28, 28), 4000)
    assert prepared.config.duration == Duration(steps=100)
