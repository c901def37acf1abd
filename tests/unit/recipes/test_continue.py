"""Bare methods that continue from given weights."""

from dataclasses import replace

import pytest
import torch
from tiny import ENCODER, tiny_images

from pantomim.config import Duration
from pantomim.core.batch import Batch
from pantomim.engine.initial import start_from
from pantomim.formats.native import save_encoder
from pantomim.masking.random import RandomMasker
from pantomim.methods.guides import teacher_of
from pantomim.nn.mlp import MlpConfig
from pantomim.nn.rope import Rope
from pantomim.recipes import prepare
from pantomim.recipes.continue_ import CONTINUED
from pantomim.study.stages import stage_run

NAMES = [family.bare for family in CONTINUED]
STARTS = {
    "like DINOv3": replace(
        ENCODER,
        position="none",
        rope=Rope(),
        registers=4,
        layer_scale=1e-5,
        mlp=MlpConfig("silu", gated=True),
        interpolation="bilinear",
    ),
    "like SigLIP": replace(ENCODER, position="learned", class_token=False),
    "like DINOv2, and few patches": replace(ENCODER, position="learned", layer_scale=1.0, patch_size=8),
}


@pytest.fixture
def source(tmp_path):
    return str(tiny_images(tmp_path / "images.npz"))


def start(folder, config):
    torch.manual_seed(0)
    save_encoder(folder, config.build(), scale={"rule": "uint8: 255 becomes 1", "divisor": 255.0}, recipe="first")
    return str(folder)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "like DINOv3") for name in NAMES),
        *((f"continue_{name}", "like SigLIP") for name in ("dbot", "cmt_mae")),
        *((f"continue_{name}", "like DINOv2, and few patches") for name in ("cae", "simmim")),
    ],
)
def test_each_method_continues_from_each_kind_of_network(name, kind, source, tmp_path):
    given = STARTS[kind]
    init = start(tmp_path, given)
    target = {"target": "pixels"} if name in ("continue_beit", "continue_cae") else {}
    if name == "continue_cmt_mae" and not given.class_token:
        with pytest.raises(ValueError, match="class token"):
            prepare(name, data=source, init=init).config.method.build(10)
        return
    run = prepare(name, data=source, init=init, **target).config
    size = (16, 16) if given.patch_size == 4 else (32, 32)  # at least 16 patches
    assert run.method.encoder == replace(given, image_size=size)
    assert run.data.crop.interpolation == (given.interpolation or run.data.crop.interpolation)
    assert (run.optim.base_lr, run.optim.layer_decay, run.optim.warmup) == (8e-5, 0.75, Duration(epochs=5.0))
    assert (run.duration, run.batch_size, run.init) == (Duration(epochs=100), 32, init)
    teacher = teacher_of(run.method)
    assert teacher is None or teacher.source == ("ema" if name == "continue_data2vec" else init)
    if name == "continue_colormae":  # whose patterns take a while to make
        run = replace(run, method=replace(run.method, masker=RandomMasker()))
    method = run.method.build(10)
    assert "Starting from the encoder" in start_from(init, method)
    batch = Batch(torch.rand(4, 3, *size), total=4)
    method(batch, method.draw(batch, 0, torch.Generator().manual_seed(0)))["loss"].backward()
    assert all(weight.grad.isfinite().all() for weight in method.encoder.parameters() if weight.grad is not None)


def test_weights_are_asked_for(source, tmp_path):
    with pytest.raises(ValueError, match=r"prepare\.init must name the weights that continue_dbot .* weights: dbot"):
        prepare("continue_dbot", data=source)
    with pytest.raises(ValueError, match=r"prepare\.size must be left out for continue"):
        prepare("continue", data=source, init="runs/x", size="tiny")


def test_length_and_batch_follow_the_data_and_can_be_given(source, tmp_path):
    init = start(tmp_path, ENCODER)
    prepared = prepare("continue_dbot", data=source, init=init, steps=200, teacher="random")
    assert prepared.chain is None
    assert (prepared.config.optim.warmup, prepared.config.method.teacher.source) == (Duration(steps=10), "random")
    short, long = (prepare("continue_data2vec", data=source, init=init, **how) for how in ({}, {"epochs": 1000}))
    assert long.config.method.target.teacher.momentum > short.config.method.target.teacher.momentum


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "none"), ({"reinit": "full"}, "full")], ids=["by default", "if asked for"]
)
def test_stages_keep_the_given_weights(source, tmp_path, given, expected):
    chain = prepare("continue_dbot", data=source, init=start(tmp_path, ENCODER), stages=2, **given).chain
    assert chain.reinit == expected
    assert stage_run(chain, 1, tmp_path).init == (str(tmp_path / "stage-0") if expected == "none" else None)


@pytest.mark.parametrize(("side", "expected"), [(126, 126), (98, 98), (140, 140), (130, 126)])
def test_the_image_size_is_cut_to_whole_patches_once(tmp_path, side, expected):
    images = tiny_images(tmp_path / "images.npz", 10, side=side)
    given = replace(ENCODER, image_size=(28, 28), patch_size=14, drop_path=0.1)
    encoder = prepare("continue", data=str(images), init=start(tmp_path, given)).config.method.encoder
    assert encoder == replace(given, image_size=(expected, expected), drop_path=0.0)


@pytest.mark.parametrize("name", ["continue_dbot", "continue_cmt_mae"])
def test_weights_that_teach_must_have_the_channels_of_the_images(tmp_path, name):
    source = str(tiny_images(tmp_path / "bands.npz", 40, channels=5))
    init = start(tmp_path, ENCODER)
    with pytest.raises(ValueError, match=rf"must have the 5 channel\(s\) of the images for {name}.*Take continue"):
        prepare(name, data=source, init=init)
    assert teacher_of(prepare(name, data=source, init=init, teacher="ema").config.method).source == "ema"


def test_bands_of_another_kind_share_the_sum(tmp_path):
    source = tiny_images(tmp_path / "bands.npz", 40, channels=5)
    prepared = prepare("continue", data=str(source), init=start(tmp_path, ENCODER))
    assert "summed, repeated and rescaled: 5 channel(s) of 3" in dict(prepared.decided)["encoder"]
    assert len(prepared.config.method.encoder.mean) == 5


@pytest.mark.parametrize(
    ("name", "target", "told"), [("continue", None, 1), ("continue_simmim", None, 1), ("continue_dbot", None, 0)]
)
def test_what_pixels_cost_is_told_beforehand(name, target, told, source, tmp_path, caplog):
    with caplog.at_level("INFO", "pantomim"):
        prepare(name, data=source, init=start(tmp_path, ENCODER), target=target)
    assert caplog.text.count("begin with continue_dbot") == told
