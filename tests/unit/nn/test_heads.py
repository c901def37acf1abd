from dataclasses import replace

import pytest
import torch
from torch import nn

from pantomim.nn.heads import Classifier
from pantomim.nn.vit import EncoderConfig

CONFIG = EncoderConfig(image_size=(8, 8), patch_size=4, width=16, depth=1, heads=2)


def test_mean_pooling_has_a_norm_of_its_own_behind_the_pool() -> None:
    classifier = Classifier(CONFIG.build(), 5, "mean")
    assert isinstance(classifier.encoder.norm, nn.Identity)
    images = torch.rand(2, 3, 8, 8)
    pooled = classifier.encoder(images).patches.mean(dim=1)
    torch.testing.assert_close(classifier(images), classifier.head(classifier.fc_norm(pooled)))


def test_class_pooling_reads_the_normed_class_token() -> None:
    classifier = Classifier(CONFIG.build(), 5, "class")
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(classifier(images), classifier.head(classifier.encoder(images).prefix[:, 0]))


def test_positions_are_trained_when_fine_tuned() -> None:
    classifier = Classifier(CONFIG.build(), 5)
    nn.init.normal_(classifier.head.weight)
    classifier(torch.rand(2, 3, 8, 8)).square().sum().backward()
    assert classifier.encoder.pos_embed.grad.abs().sum() > 0


def test_head_starts_near_zero() -> None:
    head = Classifier(CONFIG.build(), 5).head
    assert 0 < head.weight.abs().max() < 1e-3
    assert (head.bias == 0).all()


def test_class_pooling_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="pool must be 'mean' for an encoder without a class token"):
        Classifier(replace(CONFIG, class_token=False).build(), 5, "class")


@pytest.mark.parametrize(("position", "learn", "trained"), [("sincos", False, False), ("learned", False, True)])
def test_a_fixed_table_can_stay_fixed(position: str, learn: bool, trained: bool) -> None:
    classifier = Classifier(replace(CONFIG, position=position).build(), 5, learn_positions=learn)
    assert classifier.encoder.pos_embed.requires_grad == trained


def test_head_of_beit_is_cut_at_one_std() -> None:
    torch.manual_seed(0)
    encoder = replace(CONFIG, position="none", initialisation="beit").build()
    head = Classifier(encoder, 100).head
    assert 1.95e-5 < head.weight.abs().max().item() <= 2e-5 * (1 + 1e-6)
    assert encoder.pos_embed is None
    assert Classifier(CONFIG.build(), 100).head.weight.abs().max().item() > 3e-5
