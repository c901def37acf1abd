"""Recipes of segmentation: the papers' numbers on ADE20K, and our rule for other sets."""

from dataclasses import replace

import pytest

from pantomim.data.dataset import Facts
from pantomim.data.distortion import Distortion
from pantomim.data.stats import Stats
from pantomim.nn.pyramid import tapped_blocks
from pantomim.nn.segmenter import UPerNetConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes import BARE_OF, RECIPES_OF

PUBLISHED = {  # rate, layer decay, drop path, layer scale, positions, are they learned, schedule
    "mae_vit_base": (1e-4, 0.65, 0.1, 1.0, "sincos", True, "poly"),  # mmsegmentation's; the paper states none
    "beit_vit_base": (7e-4, 0.65, 0.1, 0.1, "none", True, "mmcv"),
    "beit_vit_large": (2e-5, 0.95, 0.2, 1e-6, "none", True, "mmcv"),
    "cae_vit_base": (1e-4, 0.65, 0.1, 0.1, "sincos_rows_first", False, "mmcv"),
    "cae_vit_large": (4e-5, 0.95, 0.15, 1e-5, "sincos_rows_first", False, "mmcv"),
    "dbot_vit_base": (1e-4, 0.65, 0.2, 1.0, "sincos", True, "mmcv"),
    "dbot_vit_large": (3e-5, 0.95, 0.2, 1.0, "sincos", True, "mmcv"),
    "colormae_vit_base": (1e-4, 0.65, 0.1, 1.0, "sincos", True, "poly"),
    "colormae_vit_large": (9e-5, 0.75, 0.2, 1.0, "sincos", True, "poly"),
    "cmt_mae_vit_base": (1e-4, 0.65, 0.2, 1.0, "sincos", True, "mmcv"),  # dBOT's; its authors state none
}
RECIPES = {recipe.name: recipe.config for recipe in RECIPES_OF["segmenter"]}
TINY = EncoderConfig((32, 32), 8, **ENCODER_SIZES["tiny"])
BASE = EncoderConfig((224, 224), 16, **ENCODER_SIZES["base"])


def test_there_are_no_other_recipes() -> None:
    assert set(RECIPES) == {f"segment_{name}_ade20k" for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_papers(name) -> None:
    config = RECIPES[f"segment_{name}_ade20k"]
    optim, encoder, lr = config.optim, config.method.encoder, config.optim.base_lr * config.batch_size / 256
    found = (pytest.approx(lr), optim.layer_decay, encoder.drop_path, encoder.layer_scale, encoder.position)
    assert (*found, config.method.learn_positions, optim.schedule) == PUBLISHED[name]
    assert (config.batch_size, config.duration.steps, optim.warmup.steps) == (16, 160_000, 1500)
    assert (optim.start_lr, optim.min_lr, optim.clip_norm) == (pytest.approx(1e-6 * lr), 0.0, None)
    assert (optim.betas, optim.weight_decay, optim.decay_tokens, optim.decay_relative) == (
        (0.9, 0.999),
        0.05,
        True,
        True,
    )
    assert (encoder.image_size, encoder.patch_size, encoder.relative_position) == ((512, 512), 16, "blocks")
    assert tapped_blocks(encoder.depth) == ((3, 5, 7, 11) if "base" in name else (7, 11, 15, 23))
    assert config.method.head == UPerNetConfig(
        channels=None, pool_scales=(1, 2, 3, 6), auxiliary_channels=256, auxiliary_weight=0.4, dropout=0.1
    )
    assert int(512 * config.method.stride) == 341
    crop = config.data.masks.crop
    assert (crop.base, crop.ratio, crop.max_share, crop.flip) == ((2048, 512), (0.5, 2.0), 0.75, True)
    assert crop.distortion == Distortion()
    assert config.validation.every == 16_000


def fit(start, preset="mae", **changes):
    known = {"num_images": 700, "channels": 3, "size": None, "median_shorter_side": 192, "dtype": "uint8"}
    known |= {"num_classes": 12} | changes
    stats = Stats((0.4,) * known["channels"], (0.2,) * known["channels"])
    return BARE_OF["segmenter"][f"segment_{preset}"].fit("tiny", Facts(**known), stats, start)


def test_small_sets_train_for_1500_steps_of_8_crops() -> None:
    config = fit(TINY)
    assert (config.duration.steps, config.batch_size, config.optim.warmup.steps) == (1500, 8, 75)
    assert fit(TINY, num_images=20).batch_size == 5, "no more than a quarter of the images"
    large = fit(BASE, num_images=10_000)
    assert (large.duration.steps, large.batch_size, large.optim.warmup.steps) == (160_000, 16, 1500)
    assert large.data.masks.crop.base == (2048, 512)


@pytest.mark.parametrize(
    ("start", "shorter", "side"),
    [(TINY, 192, 192), (TINY, 500, 192), (TINY, 100, 96), (BASE, 500, 496), (BASE, 3000, 512)],
)
def test_a_crop_is_as_large_as_the_shorter_side_in_whole_patches(start, shorter, side) -> None:
    config = fit(start, median_shorter_side=shorter)
    assert config.method.encoder.image_size == (side, side)
    crop = config.data.masks.crop
    assert (crop.base, crop.ratio, crop.max_share) == ((4 * side, side), (0.75, 1.5), 0.75)


def test_narrow_encoders_get_a_rate_and_a_head_of_ours_and_wide_ones_the_papers() -> None:
    narrow, wide = fit(TINY), fit(BASE)
    assert narrow.optim.base_lr * narrow.batch_size / 256 == pytest.approx(5e-4)
    assert (narrow.optim.layer_decay, narrow.method.head) == (0.75, UPerNetConfig(channels=64, auxiliary_channels=64))
    assert (wide.optim.base_lr, wide.optim.layer_decay) == (1e-4 * 256 / 16, 0.65)
    assert wide.method.head == UPerNetConfig()
    assert fit(BASE, "dbot").method.encoder.drop_path == 0.1, "at most"


@pytest.mark.parametrize("preset", ["mae", "beit", "cae", "dbot"])
def test_the_encoder_is_the_pre_trained_one_with_relative_positions_and_layer_scales(preset) -> None:
    encoder = fit(BASE, preset).method.encoder
    assert (encoder.patch_size, encoder.width, encoder.position) == (16, 768, BASE.position)
    assert encoder.relative_position == "blocks"
    assert encoder.layer_scale == 1.0, "new scales must not undo what was learned without them"
    scaled = fit(replace(BASE, layer_scale=0.3), preset).method.encoder
    assert scaled.layer_scale == 0.3, "loaded values win"


def test_colours_are_distorted_where_there_are_any() -> None:
    assert fit(TINY).data.masks.crop.distortion == Distortion()
    for changes in ({"channels": 7, "dtype": "int16"}, {"channels": 3, "dtype": "float32"}):
        distortion = fit(TINY, **changes).data.masks.crop.distortion
        assert (distortion.brightness, distortion.contrast) == (8, (0.75, 1.25))


def test_without_masks_there_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="segment must have masks to learn from"):
        fit(TINY, num_classes=None)
