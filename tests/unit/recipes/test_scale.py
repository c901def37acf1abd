"""A paper's recipe at another scale: what images, size and a given encoder decide."""

from dataclasses import replace

import pytest
import torch

from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.explain import count_cost
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.recipes import BARE_METHODS, FAMILIES
from pantomim.recipes.recipe import choose_image_size, choose_patch, differences


def facts(size=(32, 32), median=32, channels=3, num_images=5000, dtype="uint8", num_classes=7) -> Facts:
    return Facts(num_images, channels, size, median, dtype, num_classes)


def fit(name: str, size: str, known: Facts, start: EncoderConfig | None = None):
    stats = Stats((0.1,) * known.channels, (0.2,) * known.channels)
    return BARE_METHODS[name].fit(size, known, stats, start)


@pytest.mark.parametrize(
    ("side", "patch"), [(224, 16), (128, 16), (127, 8), (64, 8), (63, 4), (32, 4), (31, 2), (16, 2), (8, 2), (2, 2)]
)
def test_patch_is_the_largest_with_eight_a_side(side, patch) -> None:
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
def test_image_size_follows_the_data(known, expected) -> None:
    assert choose_image_size(known) == expected


def test_an_image_of_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2x2"):
        choose_image_size(facts((1, 1)))


@pytest.mark.parametrize("name", BARE_METHODS)
@pytest.mark.parametrize("size", ["micro", "base", "huge"])
def test_bare_methods_take_any_images(name, size) -> None:
    config = fit(name, size, facts((64, 96), 64, channels=7, num_images=100, dtype="float32"))
    encoder, paper = config.method.encoder, BARE_METHODS[name].paper(ENCODER_SIZES[size]["width"])
    assert config.recipe == name
    assert {key: getattr(encoder, key) for key in ENCODER_SIZES[size]} == ENCODER_SIZES[size]
    assert (encoder.image_size, encoder.patch_size, encoder.in_chans, encoder.mean) == ((64, 96), 8, 7, (0.1,) * 7)
    assert config.batch_size == (32 if size == "micro" else 64)  # at most the number of images
    assert config.optim.warmup.epochs == 20
    assert config.data.augment.problems(7, "float32") == []  # no colours to change
    if size != "micro":
        assert config.optim.base_lr == paper.optim.base_lr
    if size == "micro":
        assert config.optim.base_lr == (2.8e-3 if name == "mocov3" else 8e-3)
    for key in ("attention_bias", "initialisation", "relative_position"):
        assert getattr(encoder, key) == getattr(paper.method.encoder, key)


@pytest.mark.parametrize("name", BARE_METHODS)
def test_rates_below_base_follow_width_and_batch(name) -> None:
    def peak(size: str, num_images: int = 50_000) -> tuple[int, float]:
        config = fit(name, size, facts(num_images=num_images))
        return config.batch_size, config.optim.base_lr * config.batch_size / 256

    (few, micro), (many, tiny), (part, least) = peak("micro"), peak("tiny"), peak("tiny", 64)
    assert (many, part) == (256, 64)
    assert tiny == pytest.approx(micro / 2 * (many / few) ** 0.5, rel=0.05)  # twice as wide
    assert least == pytest.approx(tiny / 2, rel=0.05)  # a quarter of the batch


@pytest.mark.parametrize(
    ("known", "side", "batch_size"),
    [
        (facts(), 32, 32),
        (facts((224, 224)), 224, 16),  # 196 patches
        (facts((512, 512), 512), 224, 16),
        (facts((96, 768), 96), 96, 16),  # above the largest side: a square, of 144 patches
        (facts(num_images=20), 32, 16),
    ],
)
def test_a_step_of_micro_is_small_on_any_images(known, side, batch_size) -> None:
    config = fit("mae", "micro", known)
    assert config.method.encoder.image_size[0] == side
    assert config.batch_size == batch_size


def test_what_a_bare_method_with_a_teacher_costs_is_counted() -> None:
    cost = count_cost(fit("data2vec", "micro", facts((16, 16), 16)), torch.float32)
    assert 0 < cost.trainable <= cost.parameters["all"]


@pytest.mark.parametrize("name", BARE_METHODS)
def test_an_encoder_whose_training_is_continued_is_kept(name) -> None:
    classed = BARE_METHODS[name].paper(200).method.encoder.class_token  # I-JEPA's encoder has no class token
    given = EncoderConfig((224, 224), 8, 3, width=200, depth=5, heads=4, class_token=classed, drop_path=0.1)
    config = fit(name, "huge", facts((70, 70)), given)
    assert config.method.encoder == replace(given, image_size=(64, 64), drop_path=0.0)


def test_small_sets_of_colour_images_are_augmented_as_the_paper_does() -> None:
    assert fit("beit", "micro", facts()).data.augment.jitter == (0.4, 0.4, 0.4, 0.0)
    assert fit("supervised", "micro", facts()).data.augment.rand_augment == 2
    assert fit("supervised", "micro", facts(channels=1)).data.augment.rand_augment == 0


def test_bare_colormae_differs_from_bare_mae_in_the_masker_alone() -> None:
    ours, maes = fit("colormae", "tiny", facts()), fit("mae", "tiny", facts())
    assert {name.split(".")[1] for name, *_ in differences(ours, maes)} == {"masker"}
    assert isinstance(ours.method.masker, ColorNoiseMasker)


def test_data2vec_forgets_in_proportion_to_its_length() -> None:
    small, large = (
        fit("data2vec", "micro", facts(num_images=number)).method.target.teacher for number in (5000, 500_000)
    )
    assert 0.99 < small.momentum < large.momentum < 1
    assert small.blocks == 4  # all there are


def test_the_data_decide_the_classes() -> None:
    assert fit("supervised", "micro", facts()).method.num_classes == 7
    with pytest.raises(ValueError, match="must have labels to learn from; got images without them"):
        fit("supervised", "micro", facts(num_classes=None))


def test_a_size_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"prepare\.size must be one of micro, .* for mae; got giant"):
        fit("mae", "giant", facts())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.rows], ids=lambda family: family.name)
def test_a_run_is_compared_with_the_nearest_size(family) -> None:
    widths = {size: ENCODER_SIZES[size]["width"] for size in family.rows}
    for size, width in widths.items():
        data = "ade20k" if family.trains == "segmenter" else "in1k"
        assert family.paper(width).recipe == f"{family.name}_vit_{size}_{data}"
    assert family.paper(1).method.encoder.width == min(widths.values())
    assert family.paper(10_000).method.encoder.width == max(widths.values())
