"""Configs: to and from YAML, refused when wrong, with all problems at once."""

from dataclasses import replace
from pathlib import Path

import pytest

from pantomim.config import (
    DataConfig,
    Duration,
    OptimConfig,
    Pretrain,
    RuntimeConfig,
    Validation,
    from_dict,
    from_yaml,
    leaf_owners,
    leaves,
    to_dict,
    to_yaml,
    with_duration,
    with_kind,
)
from pantomim.data.transforms import Crop, View
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.dvae import DVAEConfig
from pantomim.methods.mae import MAEConfig
from pantomim.methods.segment import SegmentConfig
from pantomim.nn.segmenter import LinearHeadConfig, UPerNetConfig
from pantomim.recipes import RECIPES
from pantomim.targets.pixels import PixelTargetConfig


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_yaml_round_trip(recipe, tmp_path: Path) -> None:
    config = recipe.config
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(Pretrain, path) == config
    assert config.recipe == recipe.name


def test_unknown_key_names_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"optim.base_lrr: no such key. Did you mean base_lr\?"):
        from_dict(Pretrain, {"recipe": "mae", "optim": {"base_lrr": 0.1}}, "config.yaml")


def test_all_problems_are_reported_together() -> None:
    values = {
        "recipe": "mae",
        "batch_size": "many",
        "method": {"kind": "mae", "masker": {"kind": "random", "ratio": 75}},
        "runtime": {"keep": 0},
    }
    with pytest.raises(ValueError, match="not a valid Pretrain") as caught:
        from_dict(Pretrain, values, "config.yaml")
    message = str(caught.value)
    assert "batch_size" in message
    assert "RandomMasker.ratio must be in (0, 1); got 75.0" in message
    assert "RuntimeConfig.keep must be at least 1; got 0" in message


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("recipe: [mae")
    with pytest.raises(ValueError, match=r"cannot be read as YAML"):
        from_yaml(Pretrain, path)
    with pytest.raises(ValueError, match=r"cannot be read as YAML"):
        from_yaml(Pretrain, tmp_path / "absent.yaml")


@pytest.mark.parametrize("values", [{}, {"steps": 1, "epochs": 1.0}, {"steps": -1}, {"epochs": -0.5}])
def test_duration_is_one_positive_length(values) -> None:
    with pytest.raises(ValueError, match="Duration"):
        Duration(**values)


def test_duration_in_steps() -> None:
    assert Duration(steps=7).in_steps(100) == 7
    assert Duration(epochs=2.5).in_steps(3) == 8  # rounded up: no image of the last epoch is lost


def test_another_duration_keeps_the_share_of_the_warmup() -> None:
    config = Pretrain(recipe="x", duration=Duration(epochs=800), optim=OptimConfig(warmup=Duration(epochs=40)))
    assert with_duration(config, Duration(steps=500)).optim.warmup == Duration(steps=25)
    assert with_duration(config, Duration(epochs=100)).optim.warmup == Duration(epochs=5)


def test_batch_size_is_a_multiple_of_the_accumulation() -> None:
    with pytest.raises(ValueError, match=r"multiple of runtime\.accumulation"):
        Pretrain(recipe="x", batch_size=10, runtime=RuntimeConfig(accumulation=4))


def test_a_part_becomes_another_kind_and_keeps_what_both_have() -> None:
    config = Pretrain(recipe="x", method=MAEConfig(masker=RandomMasker(ratio=0.6)))
    colored = with_kind(config, "method.masker", "color_noise")
    assert colored.method.masker == ColorNoiseMasker(ratio=0.6)
    assert replace(colored, method=config.method) == config
    assert with_kind(config, "method.masker", "random") == config
    assert from_dict(Pretrain, to_dict(colored), "x") == colored


@pytest.mark.parametrize("method", [BEiTConfig(), CAEConfig(), DVAEConfig(), CAEConfig(target=PixelTargetConfig())])
def test_every_method_reads_back(method, tmp_path: Path) -> None:
    config = Pretrain(recipe="x", method=method, optim=OptimConfig(schedule="beit", decay_mask_token=True))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(Pretrain, tmp_path / "config.yaml") == config
    assert set(leaves(to_dict(config))) <= set(leaf_owners(Pretrain))


def test_a_target_becomes_another_kind() -> None:
    config = Pretrain(recipe="x", method=BEiTConfig())
    assert with_kind(config, "method.target", "pixels").method.target == PixelTargetConfig()


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("method.masker", "green", r"method\.masker\.kind must be one of random, color_noise, .*; got green"),
        ("method", "beit", r"method\.kind must stay that of the recipe, mae; got beit\. Name a recipe of beit"),
        ("method.maskr", "block", r"There is no method\.maskr\.kind\. Did you mean masker"),
        ("method.masker.ratio.share", "block", r"There is no method\.masker\.ratio\.share\.kind"),
    ],
)
def test_kinds_that_are_not_there_are_refused(path, kind, words) -> None:
    with pytest.raises(ValueError, match=words):
        with_kind(Pretrain(recipe="x"), path, kind)


def test_leaves_of_every_kind_have_names() -> None:
    names = leaf_owners(Pretrain)
    assert {"recipe", "method.masker.ratio", "method.masker.noise.color", "method.masker.exact"} <= set(names)
    assert set(leaves(to_dict(Pretrain(recipe="x")))) <= set(names)


@pytest.mark.parametrize(
    ("masker", "words"),
    [
        (
            {"kind": "color_noise", "noise": {"colour": "red"}},
            r"method\.masker\.noise\.colour: .* Did you mean color\?",
        ),
        ({"kind": "grid", "rato": 0.5}, r"method\.masker\.rato: .* Did you mean ratio\?"),
        ({"kind": "colour"}, "does not match any of the expected tags: 'random', 'color_noise'"),
    ],
)
def test_keys_within_a_kind_name_their_nearest(masker, words) -> None:
    with pytest.raises(ValueError, match=words):
        from_dict(Pretrain, {"recipe": "x", "method": {"kind": "mae", "masker": masker}}, "config.yaml")


def test_a_second_view_reads_back_and_has_names(tmp_path: Path) -> None:
    config = Pretrain(recipe="x", data=DataConfig(second=View(Crop(scale=(0.3, 0.9)))))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(Pretrain, tmp_path / "config.yaml") == config
    assert set(leaves(to_dict(config))) <= set(leaf_owners(Pretrain))
    assert from_dict(Pretrain, {"recipe": "x", "data": {"source": "mnist"}}, "x").data.second is None


def test_looks_at_held_out_images_keep_their_number() -> None:
    config = Pretrain(recipe="x", duration=Duration(steps=1500), validation=Validation(every=150))
    assert with_duration(config, Duration(steps=60)).validation == Validation(every=6)
    assert with_duration(config, Duration(steps=3)).validation == Validation(every=1)
    assert with_duration(config, Duration(epochs=3)).validation == config.validation


def test_what_belongs_to_a_kind_of_head_is_no_setting() -> None:
    config = Pretrain(recipe="x", method=SegmentConfig(head=UPerNetConfig(channels=8)))
    linear = with_kind(config, "method.head", "linear")
    assert linear.method.head == LinearHeadConfig()
    assert with_kind(linear, "method.head", "upernet").method.head == UPerNetConfig()


def test_a_weight_decay_that_grows_from_zero_is_refused() -> None:
    """No parameter would have any."""
    with pytest.raises(ValueError, match=r"weight_decay must be above 0 beside weight_decay_end; got 0 and 0\.4"):
        OptimConfig(weight_decay=0, weight_decay_end=0.4)
