"""Every recipe builds and has the numbers of its paper; what differs from the paper is told."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pantomim.config import Pretrain, from_dict, leaves, to_dict
from pantomim.explain import explain
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.noise import Noise
from pantomim.recipes import BARE_METHODS, FAMILIES, RECIPES, RECIPES_OF, prepare
from pantomim.recipes.colormae import COLORS
from pantomim.recipes.recipe import differences
from pantomim.teachers.choice import TeacherConfig

BY_NAME = {recipe.name: recipe for recipes in RECIPES_OF.values() for recipe in recipes}
SMALL = ["mae", *(f"colormae_{color}" for color in COLORS), "beit", "cae", "dbot", "cmt_mae", "mocov3", "supervised"]

OTHER_COLORS = tuple(f"colormae_{color}_" for color in COLORS[1:])  # networks and masker are those of the first


def build(name: str) -> Any:
    return BY_NAME[name].config


@pytest.mark.parametrize("recipe", BY_NAME.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_is_named_and_reads_back(recipe) -> None:
    config = recipe.config
    assert config.recipe == recipe.name
    assert from_dict(Pretrain, to_dict(config), "test") == config
    assert recipe.summary.endswith(".")
    assert recipe.cost
    assert recipe.expected
    if recipe.name.endswith("_in1k"):
        assert recipe.paper == config


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if not recipe.name.startswith(OTHER_COLORS)],
    ids=lambda recipe: recipe.name,
)
def test_every_recipe_builds_its_method(recipe) -> None:
    method: Any = recipe.config.method
    target = getattr(method, "target", None)
    if target and target.kind == "tokens":
        method = prepare(recipe.name, tokenizer="random-projection").config.method
    elif target and target.kind == "features" and not target.teacher.source:  # CLIP's weights are not here
        method = replace(method, target=replace(target, teacher=TeacherConfig("random")))
    elif method.kind in ("cmt_mae", "milan"):
        method = replace(method, teacher=TeacherConfig("random", output="norm"))
    with torch.device("meta"):
        built = method.build()
    assert built.encoder.grid == method.encoder.grid


def test_the_list_of_families_is_the_only_one() -> None:
    assert len(BY_NAME) == sum(map(len, RECIPES_OF.values()))  # no name twice
    assert set(BARE_METHODS) == {family.bare for family in FAMILIES if family.bare and family.trains == "encoder"}
    assert all(f"{name}_{size}_cifar10" in BY_NAME for name in SMALL for size in ("micro", "tiny"))


@pytest.mark.parametrize(
    ("name", "masked", "lr", "batch_size", "epochs", "warmup"),
    [
        ("mae_vit_base_in1k", 147, 2.4e-3, 4096, 1600, 40),
        ("beit_vit_base_in1k", 75, 1.5e-3, 2048, 800, 10),
        ("beit_vit_large_in1k", 75, 1.5e-3, 2048, 800, 10),
        ("cae_vit_base_in1k", 75, 1.5e-3, 2048, 800, 20),
        ("cae_98_vit_large_in1k", 98, 1.5e-3, 2048, 1600, 40),
        ("dbot_vit_base_in1k", 147, 2.4e-3, 4096, 800, 40),
        ("dbot_vit_huge_in1k", 192, 2.4e-3, 4096, 800, 40),
        ("dbot_clip_vit_base_in1k", 78, 3e-3, 4096, 1600, 10),
        ("dbot_clip_vit_huge_in1k", 78, 3e-3, 4096, 1600, 10),
        ("maskfeat_vit_base_in1k", 78, 1.6e-3, 2048, 300, 30),
        ("simmim_vit_base_in1k", 120, 4e-4, 2048, 800, 10),
        ("data2vec_vit_base_in1k", 120, 2e-3, 2048, 800, 10),
        ("data2vec_vit_large_in1k", 120, 1e-3, 4096, 800, 80),
        ("clip_mim_vit_base_in1k", 80, 1e-3, 4096, 150, 2),  # 41 % of 196
        ("clip_mae_vit_base_in1k", 147, 2.4e-3, 4096, 400, 40),
        ("mocov3_vit_small_in1k", None, 2.4e-3, 4096, 300, 40),
        ("supervised_vit_base_in1k", None, 1e-3, 1024, 300, 5),  # 5e-4 per 512 images
        ("vqkd_vit_base_in1k", None, 2e-4, 512, 100, 10),  # 5e-5 per 128 images
    ],
)
def test_counts_rates_and_lengths_are_the_papers(name, masked, lr, batch_size, epochs, warmup) -> None:
    config = build(name)
    assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(lr)
    assert (config.batch_size, config.duration.epochs, config.optim.warmup.epochs) == (batch_size, epochs, warmup)
    if masked is not None:
        assert config.method.masker.num_masked(config.method.encoder.grid) == masked


OPTIM = [  # first rate, last rate, schedule, decays of tokens and of the mask token, betas, clipping
    ("mae_vit_base_in1k", (0.0, 0.0, "mae", True, None, (0.9, 0.95), None)),
    ("beit_vit_base_in1k", (0.0, 1e-5, "beit", False, True, (0.9, 0.999), 3.0)),
    ("beit_vit_large_in1k", (0.0, 1e-5, "beit", False, True, (0.9, 0.999), 1.0)),
    ("cae_vit_base_in1k", (0.0, 1e-5, "beit", True, None, (0.9, 0.999), 3.0)),
    ("dbot_vit_base_in1k", (0.0, 0.0, "mae", True, None, (0.9, 0.95), 3.0)),
    ("dbot_vit_large_in1k", (0.0, 0.0, "mae", True, None, (0.9, 0.95), None)),
    ("dbot_clip_vit_large_in1k", (0.0, 1e-5, "beit", False, True, (0.9, 0.98), 3.0)),
    ("maskfeat_vit_base_in1k", (8e-6, 8e-6, "mae", True, None, (0.9, 0.999), 0.02)),
    ("simmim_vit_base_in1k", (2e-6, 4e-5, "drop", False, True, (0.9, 0.999), 5.0)),
    ("data2vec_vit_large_in1k", (0.0, 1e-5, "beit", False, True, (0.9, 0.999), 3.0)),
    ("clip_mae_vit_base_in1k", (2.4e-7, 0.0, "beit", False, None, (0.9, 0.95), None)),
    ("colormae_green_vit_base_in1k", (2.4e-7, 0.0, "beit", False, None, (0.9, 0.95), None)),
    ("mocov3_vit_base_in1k", (0.0, 0.0, "mae", True, None, (0.9, 0.999), None)),
    ("supervised_vit_base_in1k", (0.0, 1e-5, "mae", False, None, (0.9, 0.999), None)),
    ("vqkd_vit_base_in1k", (0.0, 1e-5, "beit", False, None, (0.9, 0.99), None)),
]


@pytest.mark.parametrize(("name", "expected"), OPTIM)
def test_optimisers_are_the_papers(name, expected) -> None:
    optim = build(name).optim
    found = (optim.start_lr, optim.min_lr, optim.schedule, optim.decay_tokens, optim.decay_mask_token)
    assert (*found, optim.betas, optim.clip_norm) == (pytest.approx(expected[0]), *expected[1:])


def test_networks_are_the_papers() -> None:
    assert build("beit_vit_large_in1k").method.encoder.layer_scale == 1e-5
    for name, drop_path in (("cae_vit_base_in1k", 0.0), ("cae_98_vit_base_in1k", 0.1)):
        method = build(name).method
        assert {part.drop_path for part in (method.encoder, method.regressor, method.decoder)} == {drop_path}
    assert build("cae_vit_large_in1k").method.regressor.layer_scale == 1e-5
    for size, depth, drop_path in (("base", None, 0.2), ("large", 0, 0.2), ("huge", 0, 0.3)):
        method = build(f"dbot_vit_{size}_in1k").method
        assert (method.teacher.source, method.teacher.depth, method.teacher.output) == ("random", depth, "block")
        assert method.encoder.drop_path == method.decoder.drop_path == drop_path
    clip = build("dbot_clip_vit_large_in1k").method
    assert (clip.encoder.layer_scale, clip.encoder.relative_position) == (0.1, "shared")
    assert (clip.target.teacher.output, clip.target.normalise) == ("projection", "none")
    teacher = build("data2vec_vit_base_in1k").method.target.teacher
    assert teacher == TeacherConfig("ema", blocks=6, momentum=0.9998, precision="float32")
    assert build("mocov3_vit_base_in1k").data.second.crop.interpolation == "bilinear"
    deit = build("supervised_vit_small_in1k")
    assert (deit.method.label_smoothing, deit.method.mixup, deit.method.cutmix, deit.method.pool) == (
        *(0.1, 0.8, 1.0),
        "class",
    )
    augment = deit.data.augment
    assert (augment.rand_augment, augment.rand_magnitude, augment.rand_std, augment.erasing) == (2, 9.0, 0.5, 0.25)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", ["micro", "tiny"])
def test_small_recipes_stand_beside_maes(name, size) -> None:
    ours, maes = build(f"{name}_{size}_cifar10"), build(f"mae_{size}_cifar10")
    apart = {setting for setting, *_ in differences(ours, maes)}
    assert not any(setting.startswith("method.encoder.width") for setting in apart)
    if name.startswith("colormae"):
        assert all(setting.startswith("method.masker.") for setting in apart)
        assert ours.method.masker == ColorNoiseMasker(noise=Noise(name.removeprefix("colormae_")), ratio=0.75)
    if name not in ("mocov3", "dbot"):
        assert (ours.optim, ours.batch_size, ours.duration) == (maes.optim, maes.batch_size, maes.duration)
    if name == "supervised":
        assert ours.method.encoder == maes.method.encoder
        assert ours.data.augment.mean == maes.method.encoder.mean


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("size", ["base", "large"])
def test_colormae_is_mae_but_for_masks_and_mmengines_schedule(color, size) -> None:
    ours, maes = build(f"colormae_{color}_vit_{size}_in1k"), build(f"mae_vit_{size}_in1k")
    apart = {setting for setting, *_ in differences(ours, maes) if not setting.startswith("method.masker.")}
    assert apart == {"optim.start_lr", "optim.schedule", "optim.decay_tokens"}


def test_differences_are_computed() -> None:
    names = [name for name, _, _ in differences(build("mae_vit_huge_in1k"), build("mae_vit_base_in1k"))]
    assert names == [f"method.encoder.{field}" for field in ("patch_size", "width", "depth", "heads")]
    assert {name.partition(".")[0] for name in leaves(to_dict(build("mae_vit_base_in1k")))} >= {"method", "optim"}


@pytest.mark.parametrize("name", ["mae_vit_base_in1k", "dbot_vit_base_in1k", "beit"])
def test_explain_calls_a_run_the_papers_only_where_no_note_is_due(name) -> None:
    prepared = prepare(name, **({"data": "mnist", "size": "micro"} if name in BARE_METHODS else {}))
    config = replace(prepared.config, method=build("mae_micro_mnist").method)  # quick to count
    told = explain(config, config, torch.float32, prepared.notes, prepared.origins)
    rows = next(rows for title, rows in told if title.startswith("Differences"))
    if name == "mae_vit_base_in1k":
        assert rows == [("none", "every setting is the paper's")]
    else:
        assert rows
        assert {what for what, _ in rows} == {"note"}
