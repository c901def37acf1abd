import dataclasses

import pytest
from tiny import tiny_images

from pantomim.config import OptimConfig, from_dict, to_dict
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.recipes import RECIPES, prepare
from pantomim.recipes.dbot import RECIPES as DBOT
from pantomim.recipes.recipe import differences
from pantomim.study.stages import stage_run

NAMES = {recipe.name for recipe in DBOT}


@pytest.mark.parametrize("recipe", DBOT, ids=lambda recipe: recipe.name)
def test_every_recipe_is_listed_builds_and_reads_back(recipe):
    config = recipe.build()
    assert recipe in RECIPES
    assert config.recipe == recipe.name
    assert from_dict(type(config), to_dict(config), "test") == config
    chain = prepare(recipe.name).chain
    assert (chain is None) == ("clip" in recipe.name)
    if chain is not None:
        assert chain.stages == 2


@pytest.mark.parametrize(
    ("size", "depth", "clip_norm", "drop_path"),
    [("base", None, 3.0, 0.2), ("large", 0, None, 0.2), ("huge", 0, None, 0.3)],
)
def test_the_authors_numbers(size, depth, clip_norm, drop_path):
    config = prepare(f"dbot_vit_{size}_in1k").config
    method = config.method
    assert isinstance(method, DBOTConfig)
    assert (method.teacher.source, method.teacher.depth, method.teacher.output) == ("random", depth, "block")
    assert method.encoder.drop_path == method.decoder.drop_path == drop_path
    assert (config.optim.clip_norm, config.optim.betas, config.batch_size) == (clip_norm, (0.9, 0.95), 4096)
    assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(2.4e-3)
    assert (config.duration.epochs, config.optim.warmup.epochs) == (800, 40)
    assert method.masker.num_masked(method.encoder.grid) == (192 if size == "huge" else 147)


@pytest.mark.parametrize(("size", "grid"), [("base", 14), ("large", 14), ("huge", 16)])
def test_the_clip_variant_is_beit(size, grid):
    config = prepare(f"dbot_clip_vit_{size}_in1k", teacher="clip:FILE").config
    method = config.method
    assert isinstance(method, BEiTConfig)
    assert method.encoder.grid == (grid, grid)
    assert method.masker.num_masked(method.encoder.grid) == 78
    assert (method.encoder.layer_scale, method.encoder.relative_position) == (0.1, "shared")
    assert (method.target.teacher.source, method.target.teacher.output) == ("clip:FILE", "projection")
    assert (method.target.distance.form, method.target.normalise) == ("cosine", "none")
    assert config.optim == dataclasses.replace(
        config.optim, betas=(0.9, 0.98), eps=1e-6, clip_norm=3.0, min_lr=1e-5, schedule="beit"
    )
    assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(3e-3)
    with pytest.raises(ValueError, match=r"OptimConfig\.eps must be positive"):
        OptimConfig(eps=0.0)


def test_any_images(tmp_path):
    source = str(tiny_images(tmp_path / "images.npz"))
    prepared = prepare("dbot", data=source, size="micro", steps=30)
    assert prepared.chain.stages == 2
    assert prepared.chain.run.duration.steps == 30
    assert prepared.config.method.encoder.image_size == (16, 16)
    names = {name for name, _, _ in differences(prepared.config, prepared.paper)}
    assert "method.encoder.width" in names
    assert not any(name.startswith("method.teacher") for name in names)


def test_options_of_a_chain(tmp_path):
    prepared = prepare("dbot_micro_cifar10", stages=3, reinit="none", evaluate="labelled")
    assert (prepared.chain.stages, prepared.chain.reinit, prepared.chain.evaluate) == (3, "none", "labelled")
    with pytest.raises(ValueError, match="--reinit and --evaluate go with --stages"):
        prepare("mae_micro_cifar10", evaluate="labelled")
    with pytest.raises(ValueError, match=r"Stages\.stages must be at least 1"):
        _ = prepare("dbot_micro_cifar10", stages=0).chain
    for teacher, depth in (("random", 0), ("runs/other", None)):
        led = prepare("dbot_vit_large_in1k", teacher=teacher).config.method.teacher
        assert (led.source, led.depth) == (teacher, depth)


def test_the_file_of_a_chain_repeats_it(tmp_path):
    from pantomim.config import to_yaml

    chain = prepare("dbot_micro_cifar10", stages=3, reinit="reference").chain
    (tmp_path / "stages.yaml").write_text(to_yaml(chain))
    again = prepare(None, config=tmp_path / "stages.yaml")
    assert again.chain == chain
    assert prepare(None, config=tmp_path / "stages.yaml", stages=4).chain.stages == 4


def test_a_moving_average_is_one_run_and_moves_by_its_length(tmp_path):
    source = str(tiny_images(tmp_path / "images.npz"))
    short, long = (prepare("dbot", data=source, size="micro", teacher="ema", steps=steps) for steps in (500, 50_000))
    assert short.chain is None
    assert pytest.approx(short.config.method.teacher.momentum ** (500 / 50), rel=1e-3) == 0.5
    assert pytest.approx(long.config.method.teacher.momentum ** (50_000 / 50), rel=1e-2) == 0.5
    epochs = prepare("dbot", data=source, size="micro", teacher="ema", epochs=100).config
    num_images = prepare("dbot", data=source, size="micro").num_images
    steps = 100 * num_images / epochs.batch_size
    assert pytest.approx(epochs.method.teacher.momentum ** (max(steps, 50) / 50), rel=1e-3) == 0.5
    assert prepare("dbot_micro_cifar10", data=source, teacher="ema").config.method.teacher.momentum == pytest.approx(
        epochs.method.teacher.momentum, abs=0.5
    )
    untold = prepare("dbot_vit_base_in1k", teacher="ema")
    assert "with --data it follows" in untold.notes[-1]
    bare = prepare("data2vec", data=source, size="micro", steps=500).config
    assert bare.method.target.teacher.momentum == short.config.method.teacher.momentum
    with pytest.raises(ValueError, match=r"Stages\.stages must be 1 for a teacher that follows its student"):
        stage_run(prepare("dbot", data=source, size="micro", teacher="ema", stages=2).chain, 1, tmp_path)
