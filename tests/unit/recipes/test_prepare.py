"""From a name, a file and choices to a config."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_images

from pantomim.config import Duration, to_yaml, with_kind
from pantomim.methods.guides import with_teacher
from pantomim.recipes import RECIPES_OF, follow, prepare
from pantomim.study.stages import stage_run
from pantomim.targets.distance import Distance
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig
from pantomim.teachers.choice import TeacherConfig


@pytest.fixture
def source(tmp_path) -> str:
    return str(tiny_images(tmp_path / "images.npz"))


@pytest.mark.parametrize(
    ("recipe", "choices", "target"),
    [
        ("mae_micro_cifar10", {"target": "hog"}, HOGTargetConfig()),
        ("mae_micro_cifar10", {"target": "features"}, FeatureTargetConfig()),
        ("mae_micro_cifar10", {"tokenizer": "x"}, TokenTargetConfig(tokenizer="x")),
        ("beit_micro_cifar10", {"tokenizer": "runs/t"}, TokenTargetConfig(tokenizer="runs/t")),
        ("beit_micro_cifar10", {"target": "pixels"}, PixelTargetConfig()),
        ("cae_micro_cifar10", {"target": "pixels"}, PixelTargetConfig(normalise="layer")),
        ("cae_micro_cifar10", {"teacher": "random"}, FeatureTargetConfig(teacher=TeacherConfig("random"))),
        (
            "clip_mim_vit_base_in1k",
            {"teacher": "somewhere"},
            FeatureTargetConfig(
                teacher=TeacherConfig("somewhere", output="projection"),
                normalise="none",
                distance=Distance("cosine"),
            ),
        ),
    ],
)
def test_target_tokenizer_and_teacher_are_choices(recipe, choices, target) -> None:
    assert prepare(recipe, **choices).config.method.target == target


@pytest.mark.parametrize("kind", [FeatureTargetConfig, HOGTargetConfig, TokenTargetConfig])
def test_a_target_of_another_kind_brings_its_own_settings(kind) -> None:
    config = prepare("mae_micro_cifar10").config
    assert with_kind(config, "method.target", kind.kind).method.target == kind()


@pytest.mark.parametrize(("teacher", "depth"), [("random", 0), ("runs/other", None)])
def test_a_teacher_of_the_methods_own(teacher, depth) -> None:
    led = prepare("dbot_vit_large_in1k", teacher=teacher).config.method.teacher
    assert (led.source, led.depth) == (teacher, depth)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("mae_vit_bse_in1k", {}, r"Did you mean mae_vit_base_in1k\?"),
        ("mae_vit_base_in1k", {"size": "tiny"}, r"prepare\.size goes with a bare method"),
        ("mae", {}, r"prepare\.data must be given for the bare method mae"),
        (None, {}, r"prepare\.recipe must be named, unless prepare\.config is"),
        (
            "mae_micro_cifar10",
            {"target": "pixels", "teacher": "ema"},
            r"prepare\.teacher goes with prepare\.target fea",
        ),
        (
            "mae_micro_cifar10",
            {"teacher": "ema", "tokenizer": "x"},
            r"prepare\.tokenizer goes with prepare\.target tok",
        ),
        ("mae_micro_cifar10", {"evaluate": "labelled"}, "must be left out for a single run"),
        (
            "supervised_micro_cifar10",
            {"target": "pixels"},
            "got them for supervised_micro_cifar10, a run of supervised",
        ),
    ],
)
def test_contradictions_are_told(name, choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(name, **choices)


def test_the_data_decide(source, tmp_path) -> None:
    prepared = prepare("supervised", data=source, size="micro", epochs=3)
    assert prepared.config.method.num_classes == 4
    assert ("classes", "4") in prepared.decided
    assert prepare("colormae", data="mnist", size="micro").paper.recipe == "colormae_green_vit_base_in1k"
    with np.load(source) as arrays:
        np.savez(tmp_path / "b.npz", images=arrays["images"])
    with pytest.raises(ValueError, match="train without labels: pantomim pretrain mae"):
        prepare("supervised", data=str(tmp_path / "b.npz"))


def test_a_chain(source, tmp_path) -> None:
    chain = prepare("dbot", data=source, size="micro", steps=30).chain
    assert (chain.stages, chain.run.duration.steps, chain.run.method.encoder.image_size) == (2, 30, (16, 16))
    chain = prepare("dbot_micro_cifar10", stages=3, reinit="reference", evaluate="labelled").chain
    assert (chain.stages, chain.reinit, chain.evaluate) == (3, "reference", "labelled")
    assert prepare("dbot_clip_vit_base_in1k").chain is None
    (tmp_path / "stages.yaml").write_text(to_yaml(chain))
    assert prepare(None, config=tmp_path / "stages.yaml").chain == chain
    assert prepare(None, config=tmp_path / "stages.yaml", stages=4).chain.stages == 4
    with pytest.raises(ValueError, match=r"Stages\.stages must be at least 1"):
        _ = prepare("dbot_micro_cifar10", stages=0).chain


@pytest.mark.parametrize(
    ("name", "more", "vocabulary"),
    [
        ("beit", {"size": "micro", "tokenizer": "random-projection"}, 512),
        ("cae", {"size": "tiny", "tokenizer": "random-projection-standardised:3"}, 512),
        ("mae", {"size": "micro", "target": "tokens", "tokenizer": "random-projection"}, 512),
        ("beit", {"size": "micro", "tokenizer": "runs/tokens"}, None),  # it has its own
        ("beit", {"size": "base", "tokenizer": "random-projection"}, None),  # the published one
        ("beit_micro_cifar10", {"tokenizer": "random-projection"}, None),
    ],
)
def test_a_small_projection_has_a_small_vocabulary(source, name, more, vocabulary) -> None:
    assert prepare(name, data=source, **more).config.method.target.vocabulary == vocabulary


def test_the_file_of_a_run_is_compared_with_its_paper(source, tmp_path) -> None:
    for name, paper in (("mae_tiny_cifar10", "mae_vit_base_in1k"), ("cae", "cae_vit_small_in1k")):
        given = prepare(name, data=source, **({"size": "micro"} if name == "cae" else {}))
        (tmp_path / "config.yaml").write_text(to_yaml(given.config))
        again = prepare(None, config=tmp_path / "config.yaml")
        assert (again.config, again.paper.recipe, again.notes) == (given.config, paper, given.notes)
    (tmp_path / "config.yaml").write_text(to_yaml(prepare("mae_micro_mnist").config).replace("kind: mae", "kind: dvae"))
    with pytest.raises(ValueError, match="is not a valid Pretrain"):
        prepare(None, config=tmp_path / "config.yaml")


def test_the_file_of_no_recipe_is_refused(tmp_path) -> None:
    given = next(recipe.config for recipe in RECIPES_OF["segmenter"] if recipe.name == "segment_mae_vit_base_ade20k")
    (tmp_path / "config.yaml").write_text(to_yaml(replace(given, recipe="segment_mea")))
    with pytest.raises(ValueError, match=r"must have the name of a recipe .* with the method segment\. Did you mean"):
        prepare(None, config=tmp_path / "config.yaml", trains="segmenter")


def test_an_ema_teacher_is_one_run_and_moves_by_its_length(source, tmp_path) -> None:
    short, long = (prepare("dbot", data=source, size="micro", teacher="ema", steps=steps) for steps in (500, 50_000))
    assert short.chain is None
    assert pytest.approx(short.config.method.teacher.momentum ** (500 / 50), rel=1e-3) == 0.5
    assert pytest.approx(long.config.method.teacher.momentum ** (50_000 / 50), rel=1e-2) == 0.5
    epochs = prepare("dbot", data=source, size="micro", teacher="ema", epochs=100)
    steps = 100 * epochs.num_images / epochs.config.batch_size
    assert pytest.approx(epochs.config.method.teacher.momentum ** (max(steps, 50) / 50), rel=1e-3) == 0.5
    assert "it follows from the number of images" in prepare("dbot_vit_base_in1k", teacher="ema").notes[-1]
    bare = prepare("data2vec", data=source, size="micro", steps=500).config
    assert bare.method.target.teacher.momentum == short.config.method.teacher.momentum
    whole = prepare("data2vec", data=source, size="micro")
    set_to = replace(whole.config, duration=Duration(steps=500))
    assert follow(whole, set_to).config.method == bare.method, "a setting is as good as an argument"
    named = replace(set_to, method=with_teacher(set_to.method, replace(set_to.method.target.teacher, momentum=0.9)))
    assert follow(whole, named).config == named
    with pytest.raises(ValueError, match=r"Stages\.stages must be 1 for an EMA teacher"):
        stage_run(prepare("dbot", data=source, size="micro", teacher="ema", stages=2).chain, 1, tmp_path)


@pytest.mark.parametrize("name", ["simmim", "ijepa"])
def test_no_end_of_a_rate_lies_above_its_peak(source, name) -> None:
    """A smaller batch lowers the peak."""
    whole = prepare(name, data=source, size="tiny", steps=500)
    small = follow(whole, replace(whole.config, batch_size=whole.config.batch_size // 16)).config
    before, after = whole.config.optim, small.optim
    peak = after.base_lr * small.batch_size / 256
    for end in ("start_lr", "min_lr"):
        assert getattr(after, end) <= peak
        assert getattr(after, end) in (getattr(before, end), getattr(before, end) / 16)
    assert after != before
