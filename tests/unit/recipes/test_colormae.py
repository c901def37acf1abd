"""ColorMAE's recipes are MAE's with other masks, and with the authors' differences on ImageNet."""

import pytest

from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.masking.color_noise import color_masker
from pantomim.recipes import RECIPES, prepare
from pantomim.recipes.colormae import COLORS, colormae
from pantomim.recipes.mae import mae, mae_micro_cifar10, mae_tiny_cifar10, mae_vit_base_in1k, mae_vit_large_in1k
from pantomim.recipes.recipe import differences

BUILT = {recipe.name: recipe for recipe in RECIPES}


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("base", [mae_micro_cifar10, mae_tiny_cifar10])
def test_small_recipes_differ_in_the_masker_alone(color, base) -> None:
    config = BUILT[base.__name__.replace("mae_", f"colormae_{color}_")].build()
    assert {name.split(".")[1] for name, *_ in differences(config, base())} == {"masker"}
    assert config.method.masker == color_masker(color, 0.75)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("base", [mae_vit_base_in1k, mae_vit_large_in1k])
def test_imagenet_recipes_are_the_authors(color, base) -> None:
    recipe = BUILT[base.__name__.replace("mae_", f"colormae_{color}_")]
    config = recipe.build()
    apart = {name for name, *_ in differences(config, base())}
    assert {name for name in apart if not name.startswith("method.masker.")} == {"optim.decay_tokens"}
    assert not config.optim.decay_tokens
    # Section 8.1 of the specification: the authors' logged configs.
    assert (config.batch_size, config.optim.base_lr, config.optim.betas) == (4096, 1.5e-4, (0.9, 0.95))
    assert (config.optim.weight_decay, config.optim.warmup.epochs, config.optim.clip_norm) == (0.05, 40, None)
    assert config.data.crop.scale == (0.2, 1.0)
    assert differences(config, recipe.paper()) == []
    assert any("--method.masker.bank" in note for note in recipe.notes)


def test_bare_colormae_differs_from_bare_mae_in_the_masker_alone() -> None:
    facts, stats = Facts(100, 3, (64, 64), 64, "uint8", None), Stats((0.5,) * 3, (0.2,) * 3)
    configs = [method("tiny", facts, stats) for method in (colormae, mae)]
    assert {name.split(".")[1] for name, *_ in differences(*configs)} == {"masker"}
    assert configs[0].method.masker == color_masker("green")


def test_bare_colormae_asks_the_data() -> None:
    prepared = prepare("colormae", data="mnist", size="micro")
    assert prepared.config.recipe == "colormae"
    assert prepared.config.method.encoder.in_chans == 1
    assert prepared.paper.recipe == "colormae_green_vit_base_in1k"
