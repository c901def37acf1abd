"""Parameter counts of CAE, built on the meta device (specification of CAE, section 2.9)."""

from dataclasses import replace

import pytest
import torch

from pantomim.methods.cae import cae_encoder
from pantomim.nn.heads import Classifier
from pantomim.nn.regressor import RegressorConfig
from pantomim.optim import parameter_groups
from pantomim.recipes.cae import preset
from pantomim.targets.tokens import TokenTarget

COUNTS = {  # size, width of the regressor: encoder, regressor blocks, decoder blocks, head, all that is trained
    ("base", None): (85_656_576, 28_366_848, 28_354_560, 6_299_648, 148_681_472),
    ("large", None): (303_124_480, 50_405_376, 50_388_992, 8_396_800, 412_320_768),
    ("small", None): (21_594_624, 7_105_536, 7_099_392, 3_153_920, 38_955_392),
    ("small", 768): (21_594_624, 28_366_848, 28_354_560, 6_299_648, 84_916_736),
}


class Vocabulary:
    """A tokenizer that is never asked for more than its size."""

    vocabulary = 8192

    def grid_of(self, image_size):
        raise NotImplementedError

    def __call__(self, images):
        raise NotImplementedError


def trained(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("num_masked", [75, 98])
@pytest.mark.parametrize(("size", "width"), COUNTS, ids=str)
def test_pretraining(size, width, num_masked):
    config = preset(size, num_masked)
    config = replace(config, regressor=replace(config.regressor, width=width))
    with torch.device("meta"):
        method = config.build(target=TokenTarget(Vocabulary()))
    parts = (method.encoder, method.regressor.blocks, method.decoder.blocks, method.decoder.head, method)
    assert tuple(map(trained, parts)) == COUNTS[size, width]
    assert (0 if method.projection is None else trained(method.projection)) == (297_216 if width else 0)
    grouped = sum(p.numel() for group in parameter_groups(method, 0.05) for p in group["params"])
    assert grouped == COUNTS[size, width][-1]


def test_no_copy_of_the_encoder_unless_asked_for():
    config = preset("base")
    tokens = TokenTarget(Vocabulary())
    with torch.device("meta"):
        methods = [replace(config, align_momentum=momentum).build(target=tokens) for momentum in (None, 0.9)]
    counts = [sum(parameter.numel() for parameter in method.parameters()) for method in methods]
    table = 197 * 768
    assert counts == [148_681_472 + table, 148_681_472 + 85_656_576 + 2 * table]


def test_classifier_with_relative_positions_in_every_block():
    encoder = replace(cae_encoder("base"), relative_position="blocks")
    with torch.device("meta"):
        classifier = Classifier(encoder.build(), 1000, learn_positions=False)
    assert sum(p.numel() for p in classifier.parameters()) == 86_682_280  # the fixed table included
    assert not classifier.encoder.pos_embed.requires_grad


def test_the_regressor_may_be_shallow():
    config = preset("base")
    with torch.device("meta"):
        method = replace(config, regressor=RegressorConfig(depth=1)).build(target=TokenTarget(Vocabulary()))
    assert trained(method.regressor.blocks) * 4 == 28_366_848
