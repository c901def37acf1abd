"""Parameter counts of the published models, built on the meta device (specification of MAE, section 4)."""

import pytest
import torch

from pantomim.masking.random import RandomMasker
from pantomim.methods.beit import BEiT, beit_encoder
from pantomim.methods.mae import MAEConfig
from pantomim.nn.heads import Classifier
from pantomim.nn.vit import ENCODER_SIZES, EncoderConfig
from pantomim.optim import layer_decay_groups, parameter_groups
from pantomim.targets.tokens import TokenTarget

PUBLISHED = {  # size, patch: encoder, whole MAE, trainable, classifier with 1000 classes
    ("base", 16): (85_798_656, 111_907_840, 111_655_680, 86_567_656),
    ("large", 16): (303_301_632, 329_541_888, 329_239_296, 304_326_632),
    ("huge", 14): (630_764_800, 657_074_508, 656_613_964, 632_045_800),
}
PARAMETERS = [pytest.param(*key, counts, id=key[0]) for key, counts in PUBLISHED.items()]


BEIT = {"base": 91_965_776, "large": 311_534_016}  # pre-training with shared relative positions and 8192 tokens


class Vocabulary:
    """A tokenizer that is never called: a head needs to know its vocabulary alone."""

    vocabulary = 8192

    def grid_of(self, image_size):
        raise NotImplementedError

    def __call__(self, images):
        raise NotImplementedError


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def encoder_config(size, patch_size):
    return EncoderConfig(patch_size=patch_size, **ENCODER_SIZES[size])


@pytest.mark.parametrize(("size", "patch_size", "counts"), PARAMETERS)
def test_pretraining(size, patch_size, counts):
    with torch.device("meta"):
        method = MAEConfig(encoder=encoder_config(size, patch_size)).build()
    assert count(method.encoder.parameters()) == counts[0]
    assert count(method.parameters()) == counts[1]
    assert count(p for p in method.parameters() if p.requires_grad) == counts[2]
    assert count(p for group in parameter_groups(method, 0.05) for p in group["params"]) == counts[2]


@pytest.mark.parametrize(("size", "patch_size", "counts"), PARAMETERS)
def test_classifier(size, patch_size, counts):
    with torch.device("meta"):
        classifier = Classifier(encoder_config(size, patch_size).build(), 1000)
    assert count(classifier.parameters()) == counts[3]
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert count(p for group in layer_decay_groups(classifier, 0.05, 0.75) for p in group["params"]) == counts[3]


@pytest.mark.parametrize(("size", "expected"), BEIT.items())
def test_beit_pretraining(size, expected):
    with torch.device("meta"):
        method = BEiT(beit_encoder(size).build(), RandomMasker(), TokenTarget(Vocabulary()))
    assert count(method.parameters()) == expected
    assert all(parameter.requires_grad for parameter in method.parameters())
