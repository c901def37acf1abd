"""Recipes build, and say what the paper says; bare methods decide from the data."""

from dataclasses import replace

import pytest
import torch

from pantomim.core.batch import Batch
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.explain import count_cost, explain
from pantomim.recipes import RECIPES, prepare
from pantomim.recipes.mae import choose_image_size, choose_patch, mae, mae_vit_base_in1k, mae_vit_huge_in1k
from pantomim.recipes.recipe import differences
from pantomim.teachers.choice import TeacherConfig


def facts(size: tuple[int, int] | None, median: int = 32, channels: int = 3, num_images: int = 100) -> Facts:
    return Facts(num_images, channels, size, median, "uint8", None)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_builds(recipe) -> None:
    target = getattr(recipe.build().method, "target", None)
    config = prepare(recipe.name, tokenizer="random-projection" if target and target.kind == "tokens" else None).config
    if target and target.kind == "features" and not target.teacher.source:  # CLIP's weights are nowhere to be had here
        guided = replace(config.method.target, teacher=TeacherConfig("random"))
        config = replace(config, method=replace(config.method, target=guided))
    if config.method.kind == "cmt_mae":
        config = replace(config, method=replace(config.method, teacher=TeacherConfig("random", output="norm")))
    with torch.device("meta"):
        method = config.method.build()
    assert method.encoder.grid == config.method.encoder.grid
    assert recipe.summary.endswith(".")


@pytest.mark.parametrize(
    ("side", "patch"), [(224, 16), (128, 16), (127, 8), (64, 8), (63, 4), (32, 4), (31, 2), (16, 2), (8, 2), (2, 2)]
)
def test_patch_is_the_largest_with_eight_a_side(side: int, patch: int) -> None:
    assert choose_patch((side, side)) == patch
    assert choose_patch((side, 4 * side)) == patch


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (facts((32, 32)), (32, 32)),
        (facts((28, 28)), (28, 28)),
        (facts((96, 130)), (96, 128)),
        (facts(None, median=500), (224, 224)),
        (facts(None, median=100), (96, 96)),
        (facts((3000, 4000), median=3000), (224, 224)),
    ],
)
def test_image_size_follows_the_data(known: Facts, expected: tuple[int, int]) -> None:
    assert choose_image_size(known) == expected


def test_an_image_of_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2x2"):
        choose_image_size(facts((1, 1)))


def test_bare_mae_takes_channels_and_statistics_from_the_data() -> None:
    config = mae("micro", facts((64, 64), channels=7, num_images=100), Stats((0.1,) * 7, (0.2,) * 7))
    encoder = config.method.encoder
    assert (encoder.in_chans, encoder.patch_size, encoder.width) == (7, 8, 96)
    assert encoder.mean == (0.1,) * 7
    assert config.batch_size == 64  # at most the number of images


def test_table_8() -> None:
    config = mae_vit_base_in1k()
    assert (config.optim.base_lr, config.optim.betas, config.optim.weight_decay) == (1.5e-4, (0.9, 0.95), 0.05)
    assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(2.4e-3)
    assert config.optim.warmup.epochs == 40


def test_differences_are_computed() -> None:
    names = [name for name, _, _ in differences(mae_vit_huge_in1k(), mae_vit_base_in1k())]
    assert names == [f"method.encoder.{field}" for field in ("patch_size", "width", "depth", "heads")]
    assert not differences(mae_vit_base_in1k(), mae_vit_base_in1k())


def test_cost_of_the_smallest_step_is_counted_right() -> None:
    config = mae("micro", facts((16, 16)), Stats((0.5,) * 3, (0.25,) * 3))
    cost = count_cost(config, torch.float32)
    method = config.method.build()
    assert cost.parameters["all"] == sum(p.numel() for p in method.parameters())
    assert cost.parameters["encoder"] == sum(p.numel() for p in method.encoder.parameters())
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    batch = Batch(torch.rand(1, 3, 16, 16), total=1)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        method(batch, method.draw(batch, 0, torch.Generator()))
    assert cost.flops == counter.get_total_flops()
    assert cost.activations_gib > 0


def test_vit_huge_is_explained_without_its_weights() -> None:
    sections = dict(explain(mae_vit_huge_in1k(), mae_vit_huge_in1k(), torch.bfloat16))
    assert ("parameters, all", "657,074,508") in sections["Cost"]  # spec: counted from the authors' code
    assert sections["Differences from the paper (mae_vit_huge_in1k)"] == [("none", "every setting is the paper's")]


def test_a_misspelt_recipe_names_its_neighbour() -> None:
    with pytest.raises(ValueError, match=r"Did you mean mae_vit_base_in1k\?"):
        prepare("mae_vit_bse_in1k")
    with pytest.raises(ValueError, match="goes with a bare method"):
        prepare("mae_vit_base_in1k", size="tiny")
    with pytest.raises(ValueError, match="Add --data"):
        prepare("mae")
    with pytest.raises(ValueError, match="either a recipe or --config"):
        prepare(None)
