"""What a run would cost, counted on tensors without memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_images

import pantomim
from pantomim.config import Pretrain
from pantomim.core.batch import Batch
from pantomim.explain import count_cost, explain
from pantomim.methods.dvae import DVAEConfig
from pantomim.nn.dvae import DVAESizes
from pantomim.recipes import RECIPES, prepare


def test_cost_of_the_smallest_step_is_counted_right() -> None:
    config = prepare("mae_micro_cifar10").config
    cost = count_cost(config, torch.float32)
    method = config.method.build()
    assert cost.parameters["all"] == sum(p.numel() for p in method.parameters())
    assert cost.parameters["encoder"] == sum(p.numel() for p in method.encoder.parameters())
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    batch = Batch(torch.rand(1, 3, 32, 32), total=1)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        method(batch, method.draw(batch, 0, torch.Generator()))
    assert cost.flops == counter.get_total_flops()
    assert cost.activations_gib > 0


def test_vit_huge_is_explained_without_its_weights() -> None:
    huge = prepare("mae_vit_huge_in1k")
    sections = dict(explain(huge.config, huge.paper, torch.bfloat16, huge.notes))
    assert ("parameters, all", "657,074,508") in sections["Cost"]  # spec: counted from the authors' code
    assert sections["Differences from the paper (mae_vit_huge_in1k)"] == [("none", "every setting is the paper's")]


@pytest.mark.parametrize(
    ("name", "parameters"), [("supervised_vit_small_in1k", 22_050_664), ("supervised_vit_base_in1k", 86_567_656)]
)
def test_sizes_of_timms_deit(name, parameters) -> None:
    cost = count_cost(prepare(name).config, torch.float32)
    assert cost.parameters["all"] == cost.trainable == parameters


def test_a_tokenizer_is_counted_where_it_is_named() -> None:
    config, unnamed_config = (
        prepare("cae_micro_cifar10", tokenizer=name).config for name in ("random-projection", None)
    )
    named, unnamed = (dict(dict(explain(run, config, torch.float32))["Cost"]) for run in (config, unnamed_config))
    assert "tokenizer" in unnamed
    assert "tokenizer" not in named
    assert named["parameters, trained"] == unnamed["parameters, trained"]
    assert named["FLOPs per image"] != unnamed["FLOPs per image"]


def test_a_teacher_that_is_not_named_is_not_counted() -> None:
    config = prepare("clip_mim_vit_base_in1k").config
    config = replace(config, method=replace(config.method, encoder=replace(config.method.encoder, depth=1)))
    cost = dict(dict(explain(config, config, torch.float32))["Cost"])
    assert "none is named yet" in cost["teacher"]


@pytest.mark.parametrize("channels", [3, 1])
def test_an_average_of_the_encoder_is_counted(channels) -> None:
    config = prepare("cae_micro_cifar10", target="pixels").config
    statistics = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    encoder = replace(config.method.encoder, in_chans=channels, **statistics)
    config = replace(config, method=replace(config.method, encoder=encoder))
    averaged = replace(config, method=replace(config.method, align_momentum=0.9))
    costs = [count_cost(each, torch.float32) for each in (config, averaged)]
    assert costs[1].parameters["all"] - costs[0].parameters["all"] == costs[0].parameters["encoder"]
    assert costs[1].trainable == costs[0].trainable


def test_a_tokenizer_in_training_is_counted_too() -> None:
    sizes = DVAESizes(vocabulary=16, width=8, code_width=6, blocks=1, stride=4)
    cost = count_cost(Pretrain(recipe="x", method=DVAEConfig(sizes=sizes, image_size=(16, 16))), torch.float32)
    assert cost.parameters["all"] == 2 * cost.trainable  # the average is not trained
    assert cost.flops > 0


def test_settings_of_the_data_are_told() -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.name == "supervised_micro_cifar10")
    sections = dict(explain(recipe.config, recipe.paper, torch.float32))
    told = dict(sections["Training"])
    assert "rand_augment: 2" in told["augment"]
    assert "grayscale" not in told["augment"]  # off there
    off = told["off, 0 or null"].split(", ")
    assert {"lora", "freeze_blocks", "masks"} <= set(off)
    assert not told.keys() & set(off)
    assert told["weight_decay"] == "0.05"


def test_what_was_set_instead_of_what_the_data_say_is_told(tmp_path: Path) -> None:
    given = {"method.encoder.image_size": (32, 32), "batch_size": 8}
    told = pantomim.explain("mae", data=tiny_images(tmp_path / "own.npz"), size="micro", settings=given)
    decided = dict(dict(told.sections)["Decided from the data, unless set"])
    assert decided["image size"].startswith("32x32 (by the data: ")
    assert decided["batch size"].startswith("8 (by the data: ")
