"""Recipes of fine-tuning: the papers' numbers, and our rule for other images."""

from dataclasses import replace

import pytest

from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes import BARE_OF, RECIPES_OF
from pantomim.recipes.finetune import from_scratch, preset_of

PUBLISHED = {  # epochs, warm-up, batch, peak rate, layer decay, drop path, layer scale, clipping, repeats
    "mae_vit_base": (100, 5, 1024, 2e-3, 0.65, 0.1, None, None, 1),
    "mae_vit_large": (50, 5, 1024, 4e-3, 0.75, 0.2, None, None, 1),
    "mae_vit_huge": (50, 5, 1024, 4e-3, 0.75, 0.3, None, None, 1),
    "beit_vit_base": (100, 20, 1024, 4e-3, 0.65, 0.1, 0.1, None, 3),  # the rate: searched in 2e-3 ... 5e-3
    "beit_vit_large": (50, 5, 1024, 4e-3, 0.75, 0.1, 1e-5, None, 1),
    "cae_vit_base": (100, 5, 4096, 8e-3, 0.65, 0.1, 0.1, None, 1),
    "cae_vit_large": (50, 5, 4096, 2e-3, 0.75, 0.2, 1e-5, None, 1),
    "dbot_vit_base": (100, 5, 1024, 1.2e-3, 0.65, 0.1, None, None, 1),
    "dbot_vit_large": (50, 5, 1024, 1.2e-3, 0.75, 0.25, None, 1.0, 1),
    "dbot_vit_huge": (50, 5, 1024, 1.2e-3, 0.75, 0.3, None, None, 1),
    "colormae_vit_base": (100, 5, 1024, 2e-3, 0.65, 0.1, None, None, 1),
    "cmt_mae_vit_base": (100, 5, 1024, 4e-4, 0.65, 0.1, None, None, 1),
}
PARTS = {  # initial head; where the norm after the mean begins; positions learned; relative positions
    "mae": ("mae", "new", True, "none"),
    "colormae": ("mae", "new", True, "none"),
    "cmt_mae": ("mae", "new", True, "none"),
    "dbot": ("dbot", "new", True, "none"),
    "beit": ("beit", "new", False, "blocks"),
    "cae": ("beit", "pretrained", False, "blocks"),
}
RECIPES = {recipe.name: recipe.config for recipe in RECIPES_OF["classifier"]}
TINY = EncoderConfig((32, 32), 4, **ENCODER_SIZES["tiny"])


def test_there_are_no_other_recipes() -> None:
    assert set(RECIPES) == {f"finetune_{name}_in1k" for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_papers(name) -> None:
    config = RECIPES[f"finetune_{name}_in1k"]
    method, optim, encoder = config.method, config.optim, config.method.encoder
    lr = pytest.approx(optim.base_lr * config.batch_size / 256)
    found = (config.duration.epochs, optim.warmup.epochs, config.batch_size, lr, optim.layer_decay, encoder.drop_path)
    assert (*found, encoder.layer_scale, optim.clip_norm, config.data.repeats) == PUBLISHED[name]
    assert (optim.optimiser, optim.betas, optim.weight_decay, optim.min_lr) == ("adamw", (0.9, 0.999), 0.05, 1e-6)
    assert not optim.decay_tokens
    assert (method.mixup, method.cutmix, method.label_smoothing, method.ema) == (0.8, 1.0, 0.1, None)
    augment = config.data.augment
    assert (augment.rand_augment, augment.rand_magnitude, augment.rand_std, augment.erasing) == (2, 9.0, 0.5, 0.25)
    assert (config.data.crop.scale, method.test_margin) == ((0.08, 1.0), 256 / 224)
    assert encoder.patch_size == (14 if name.endswith("huge") else 16)
    parts = (method.head_init, method.norm_init, method.learn_positions, encoder.relative_position)
    assert (method.pool, parts) == ("mean", PARTS[name.partition("_vit")[0]])


def fit(num_images, start=None, preset="mae", **changes):
    known = {"channels": 3, "size": (32, 32), "median_shorter_side": 32, "dtype": "uint8", "num_classes": 10} | changes
    stats = Stats((0.4,) * known["channels"], (0.2,) * known["channels"])
    return BARE_OF["classifier"][f"finetune_{preset}"].fit("tiny", Facts(num_images=num_images, **known), stats, start)


@pytest.mark.parametrize(
    ("num_images", "epochs", "batch_size", "mixes"),
    [
        (500, 60, 32, False),
        (2_999, 60, 64, False),
        (4_000, 50, 64, True),
        (8_000, 25, 128, False),  # too few epochs
        (50_000, 20, 128, False),
        (100_000, 100, 1024, True),  # large: the paper's
    ],
)
def test_small_sets_see_200_000_images_within_20_and_60_epochs(num_images, epochs, batch_size, mixes) -> None:
    config = fit(num_images, TINY)
    assert (config.duration.epochs, config.batch_size) == (epochs, batch_size)
    assert config.optim.warmup.epochs == pytest.approx(epochs / 20), "MAE's share"
    assert (config.method.mixup, config.method.cutmix) == ((0.8, 1.0) if mixes else (0.0, 0.0))
    assert config.data.augment.erasing == (0.25 if mixes else 0.0)


def test_narrow_encoders_get_a_rate_of_ours_and_wide_ones_the_papers() -> None:
    narrow, wide = fit(4_000, TINY), fit(4_000, EncoderConfig((224, 224), 16, **ENCODER_SIZES["large"]))
    assert narrow.optim.base_lr * narrow.batch_size / 256 == pytest.approx(1e-3)
    assert narrow.optim.layer_decay == 0.75
    assert wide.optim.base_lr == RECIPES["finetune_mae_vit_large_in1k"].optim.base_lr
    assert (wide.optim.layer_decay, wide.method.encoder.drop_path) == (0.75, 0.2)


@pytest.mark.parametrize(("preset", "relative"), [("mae", "none"), ("beit", "blocks"), ("cae", "blocks")])
def test_the_encoder_is_the_pre_trained_one_with_the_presets_tables(preset, relative) -> None:
    start = EncoderConfig((64, 48), 4, **ENCODER_SIZES["tiny"])
    encoder = fit(4_000, start, preset, size=None, median_shorter_side=500).method.encoder
    assert (encoder.image_size, encoder.patch_size, encoder.width) == ((64, 48), 4, start.width)
    assert encoder.relative_position == relative


def test_small_images_are_changed_less_and_looked_at_whole() -> None:
    small, large = fit(4_000, TINY), fit(4_000, EncoderConfig((128, 128), 16, **ENCODER_SIZES["tiny"]))
    assert (small.method.test_margin, small.data.crop.scale, small.data.augment.rand_magnitude) == (1, (0.4, 1), 5)
    assert (large.method.test_margin, large.data.augment.rand_magnitude) == (256 / 224, 9)
    bands = fit(4_000, channels=7, dtype="int16")
    assert bands.data.augment.rand_augment == 0, "of colours alone"


def test_without_labels_there_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="finetune must have labels to learn from"):
        fit(4_000, num_classes=None)


def test_from_scratch_one_rate_for_all_layers_an_ordinary_head_and_all_else_the_same() -> None:
    run = replace(fit(4_000, TINY), init="runs/pre")
    scratch = from_scratch(run)
    assert from_scratch(replace(run, optim=replace(run.optim, freeze_blocks=6))) == scratch
    assert (scratch.init, scratch.optim.layer_decay, scratch.method.head_init) == (None, 1.0, "deit")
    optim, method = replace(scratch.optim, layer_decay=0.75), replace(scratch.method, head_init="mae")
    assert replace(scratch, init=run.init, optim=optim, method=method) == run


@pytest.mark.parametrize("images", [12_812, 128_117])
def test_few_labels_of_a_large_set(images) -> None:
    """A fifth of the whole run's steps, a tenth of them warm-up, a stronger decay, no repeats (finetune.md, 4)."""
    facts, stats = Facts(images, 3, None, 400, "uint8", 1000), Stats((0.5,) * 3, (0.2,) * 3)
    run = BARE_OF["classifier"]["finetune_beit"].fit("base", facts, stats, EncoderConfig(), 1_281_167)
    steps = round(100 * 1_281_167 / 1024 / 5)
    assert (run.duration.steps, run.optim.warmup.steps) == (steps, round(steps / 10))
    assert (run.optim.layer_decay, run.data.repeats, run.batch_size) == (pytest.approx(0.55), 1, 1024)


def test_an_image_above_224_is_tested_whole() -> None:
    assert fit(4_000, EncoderConfig((384, 384))).method.test_margin == 1.0
    assert fit(4_000, EncoderConfig((224, 224))).method.test_margin == 256 / 224


def test_the_preset_is_that_of_the_encoders_method(tmp_path) -> None:
    assert preset_of(None) == preset_of("timm:vit_small_patch16_224") == preset_of(str(tmp_path)) == "mae"
    for recipe, preset in (
        ("colormae_green_micro_cifar10", "colormae"),
        ("finetune_cae", "cae"),
        ("segment_cmt_mae", "cmt_mae"),
    ):
        (tmp_path / "config.yaml").write_text(f"recipe: {recipe}\n")
        assert preset_of(str(tmp_path)) == preset_of(str(tmp_path / "encoder.safetensors")) == preset
