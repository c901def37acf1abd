"""Parameter counts of the published models, built on the meta device (specifications of MAE, 4, and of CAE, 2.9)."""

from dataclasses import replace

import pytest
import torch

from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.methods.cae import cae_encoder
from pantomim.methods.mae import MAEConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.regressor import RegressorConfig
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.optim import layer_scale, parameter_groups
from pantomim.recipes.cae import preset
from pantomim.targets.tokens import TokenTarget

MAE = {  # size, patch: encoder, whole MAE, trainable, classifier with 1000 classes
    ("base", 16): (85_798_656, 111_907_840, 111_655_680, 86_567_656),
    ("large", 16): (303_301_632, 329_541_888, 329_239_296, 304_326_632),
    ("huge", 14): (630_764_800, 657_074_508, 656_613_964, 632_045_800),
}
BEIT = {"base": 91_965_776, "large": 311_534_016}  # pre-training with shared relative positions and 8192 tokens
CAE = {  # size, width of the regressor: encoder, regressor blocks, decoder blocks, head, all that is trained
    ("base", None): (85_656_576, 28_366_848, 28_354_560, 6_299_648, 148_681_472),
    ("large", None): (303_124_480, 50_405_376, 50_388_992, 8_396_800, 412_320_768),
    ("small", None): (21_594_624, 7_105_536, 7_099_392, 3_153_920, 38_955_392),
    ("small", 768): (21_594_624, 28_366_848, 28_354_560, 6_299_648, 84_916_736),
}


class Vocabulary:
    """A tokenizer that is never called: a head needs to know its vocabulary alone."""

    vocabulary = 8192

    def grid_of(self, image_size):
        raise NotImplementedError

    def __call__(self, images):
        raise NotImplementedError


def sized(table):
    """The sizes of a table; large ones take a second each, even without memory."""
    slow = ("large", "huge")
    return [pytest.param(*key, marks=[pytest.mark.slow] if key[0] in slow else [], id=str(key)) for key in table]


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):
        yield


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def trained(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def grouped(groups):
    return sum(parameter.numel() for group in groups for parameter in group["params"])


@pytest.mark.parametrize(("size", "patch_size"), sized(MAE))
def test_mae(size, patch_size):
    encoder = EncoderConfig(patch_size=patch_size, **ENCODER_SIZES[size])
    method, classifier = MAEConfig(encoder=encoder).build(), Classifier(encoder.build(), 1000)
    counts = count(method.encoder), count(method), trained(method), count(classifier)
    assert counts == MAE[size, patch_size]
    assert grouped(parameter_groups(method, 0.05)) == trained(method)
    by_layer = parameter_groups(classifier, 0.05, lr_scale=layer_scale(classifier.encoder.depth, 0.75))
    assert grouped(by_layer) == trained(classifier) == count(classifier)


@pytest.mark.parametrize(("size", "expected"), sized(BEIT.items()))
def test_beit(size, expected):
    method = BEiTConfig(encoder=beit_encoder(size)).build(target=TokenTarget(Vocabulary()))
    assert count(method) == trained(method) == expected


@pytest.mark.parametrize("num_masked", [75, 98])
@pytest.mark.parametrize(("size", "width"), sized(CAE))
def test_cae(size, width, num_masked):
    config = preset(size, num_masked)
    config = replace(config, regressor=replace(config.regressor, width=width))
    method = config.build(target=TokenTarget(Vocabulary()))
    parts = (method.encoder, method.regressor.blocks, method.decoder.blocks, method.decoder.head, method)
    assert tuple(map(trained, parts)) == CAE[size, width]
    assert (0 if method.projection is None else trained(method.projection)) == (297_216 if width else 0)
    assert grouped(parameter_groups(method, 0.05)) == trained(method)


def test_cae_has_no_copy_of_the_encoder_unless_asked_for():
    config, tokens = preset("base"), TokenTarget(Vocabulary())
    counts = [count(replace(config, align_momentum=momentum).build(target=tokens)) for momentum in (None, 0.9)]
    table = 197 * 768
    assert counts == [148_681_472 + table, 148_681_472 + 85_656_576 + 2 * table]


def test_caes_classifier_with_relative_positions_in_every_block():
    encoder = replace(cae_encoder("base"), relative_position="blocks")
    classifier = Classifier(encoder.build(), 1000, learn_positions=False)
    assert count(classifier) == 86_682_280  # the fixed table included
    assert not classifier.encoder.pos_embed.requires_grad


def test_caes_regressor_may_be_shallow():
    config = replace(preset("base"), regressor=RegressorConfig(depth=1))
    assert trained(config.build(target=TokenTarget(Vocabulary())).regressor.blocks) * 4 == 28_366_848
