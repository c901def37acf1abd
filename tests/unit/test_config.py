"""Configs: to and from YAML, refused when wrong, with all problems at once."""

from pathlib import Path

import pytest

from pantomim.config import Duration, OptimConfig, Pretrain, RuntimeConfig, from_dict, from_yaml, to_yaml, with_duration
from pantomim.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_yaml_round_trip(recipe, tmp_path: Path) -> None:
    config = recipe.build()
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(Pretrain, path) == config
    assert config.recipe == recipe.name


def test_unknown_key_names_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"optim.base_lrr: no such key. Did you mean base_lr\?"):
        from_dict(Pretrain, {"recipe": "mae", "optim": {"base_lrr": 0.1}}, "config.yaml")


def test_all_problems_are_reported_together() -> None:
    values = {"recipe": "mae", "batch_size": "many", "method": {"masker": {"ratio": 75}}, "runtime": {"keep": 0}}
    with pytest.raises(ValueError, match="not a valid Pretrain") as caught:
        from_dict(Pretrain, values, "config.yaml")
    message = str(caught.value)
    assert "batch_size" in message
    assert "Give a share, not a percentage" in message
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
    with pytest.raises(ValueError, match="Duration must"):
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
