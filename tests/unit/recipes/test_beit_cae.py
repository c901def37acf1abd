"""Recipes of BEiT and CAE say what papers and code say; targets and tokenizers are chosen by name."""

from dataclasses import replace

import pytest
import torch

from pantomim.config import Pretrain
from pantomim.data.dataset import Facts
from pantomim.data.stats import Stats
from pantomim.explain import count_cost, explain
from pantomim.methods.dvae import DVAEConfig
from pantomim.nn.dvae import DVAESizes
from pantomim.recipes import prepare
from pantomim.recipes.beit import beit, beit_vit_base_in1k, beit_vit_large_in1k
from pantomim.recipes.cae import cae, cae_98_vit_base_in1k, cae_vit_base_in1k, cae_vit_large_in1k
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig


def test_table_12_of_beit() -> None:
    for config, clip, scale in ((beit_vit_base_in1k(), 3.0, 0.1), (beit_vit_large_in1k(), 1.0, 1e-5)):
        assert config.optim.base_lr * config.batch_size / 256 == pytest.approx(1.5e-3)
        assert (config.optim.min_lr, config.optim.betas, config.optim.clip_norm) == (1e-5, (0.9, 0.999), clip)
        assert (config.optim.decay_tokens, config.optim.decay_mask_token) == (False, True)
        encoder = config.method.encoder
        assert (encoder.layer_scale, encoder.drop_path, encoder.relative_position) == (scale, 0.1, "shared")
        assert config.method.masker.num_masked(encoder.grid) == 75


def test_both_presets_of_cae() -> None:
    few, many = cae_vit_base_in1k(), cae_98_vit_base_in1k()
    for config, masked, drop_path, epochs in ((few, 75, 0.0, 800), (many, 98, 0.1, 1600)):
        method = config.method
        assert method.masker.num_masked(method.encoder.grid) == masked
        assert (method.encoder.drop_path, method.regressor.drop_path, method.decoder.drop_path) == (drop_path,) * 3
        assert (config.duration.epochs, config.optim.clip_norm, config.optim.schedule) == (epochs, 3.0, "beit")
    assert cae_vit_large_in1k().method.regressor.layer_scale == 1e-5


@pytest.mark.parametrize("bare", [beit, cae])
def test_bare_methods_fit_the_data(bare) -> None:
    facts = Facts(100, 1, (28, 28), 28, "uint8", None)
    config = bare("micro", facts, Stats((0.1,), (0.3,)))
    encoder = config.method.encoder
    assert (encoder.in_chans, encoder.patch_size, encoder.attention_bias, config.batch_size) == (1, 2, "qv", 64)
    assert config.method.target.tokenizer == ""
    cost = count_cost(config, torch.float32)  # counts without a tokenizer
    assert cost.parameters["encoder"] == sum(weight.numel() for weight in encoder.build().parameters())
    assert cost.trainable <= cost.parameters["all"]


def test_target_and_tokenizer_are_options() -> None:
    assert prepare("cae_micro_cifar10", target="pixels").config.method.target == PixelTargetConfig(normalise="layer")
    named = prepare("beit_micro_cifar10", tokenizer="runs/tokenizer").config
    assert named.method.target == TokenTargetConfig(tokenizer="runs/tokenizer")
    with pytest.raises(ValueError, match="--tokenizer goes with --target tokens"):
        prepare("cae_micro_cifar10", target="pixels", tokenizer="x")
    assert prepare("mae_micro_cifar10", tokenizer="x").config.method.target == TokenTargetConfig(tokenizer="x")


def test_explain_counts_a_tokenizer_that_is_named() -> None:
    config = prepare("cae_micro_cifar10", tokenizer="random-projection").config
    named = dict(dict(explain(config, config, torch.float32))["Cost"])
    unnamed_config = prepare("cae_micro_cifar10").config
    unnamed = dict(dict(explain(unnamed_config, config, torch.float32))["Cost"])
    assert "tokenizer" in unnamed
    assert "tokenizer" not in named
    assert named["parameters, trained"] == unnamed["parameters, trained"]
    assert named["FLOPs per image"] != unnamed["FLOPs per image"]


def test_an_average_of_the_encoder_is_counted() -> None:
    config = prepare("cae_micro_cifar10", target="pixels").config
    averaged = replace(config, method=replace(config.method, align_momentum=0.9))
    costs = [count_cost(each, torch.float32) for each in (config, averaged)]
    assert costs[1].parameters["all"] - costs[0].parameters["all"] == costs[0].parameters["encoder"]
    assert costs[1].trainable == costs[0].trainable


def test_a_tokenizer_in_training_is_counted_too() -> None:
    sizes = DVAESizes(vocabulary=16, width=8, code_width=6, blocks=1, stride=4)
    config = Pretrain(recipe="x", method=DVAEConfig(sizes=sizes, image_size=(16, 16)))
    cost = count_cost(config, torch.float32)
    assert cost.parameters["all"] == 2 * cost.trainable  # the average is not trained
    assert cost.flops > 0
