from dataclasses import replace

import pytest
import torch
from given import Given
from tiny import DECODER, ENCODER
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.masking.attention import AttentionMasker
from pantomim.masking.block import BlockMasker
from pantomim.masking.random import RandomMasker
from pantomim.methods.milan import MILANConfig

CONFIG = MILANConfig(encoder=ENCODER, decoder=DECODER)


def batch():
    return Batch(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), total=3)


def built(config, teacher=None):
    torch.manual_seed(0)
    method = config.build(teacher=teacher or Given(width=24)).train()
    return method, method.draw(batch(), 0, torch.Generator().manual_seed(0))


def test_the_loss_by_hand_is_over_all_tokens():
    method, draws = built(CONFIG)
    latent = method.encoder(batch().images, draws.mask.ids_keep)
    prediction = F.normalize(method.decoder(latent, draws.mask, True, True), dim=2)
    target = F.normalize(method.teacher.tokens, dim=2)
    expected = (prediction - target).square().sum(dim=2)
    assert expected.shape == (3, 17)
    loss = method(batch(), draws)["loss"]
    torch.testing.assert_close(loss, expected.mean())
    loss.backward()
    assert all(weight.grad is not None for weight in method.parameters() if weight.requires_grad)


def test_attention_says_what_stays_visible():
    teacher = Given()
    teacher.attention = torch.eye(16)[:3].roll(5, dims=1) + 1e-8  # nearly all on one patch
    _, draws = built(CONFIG, teacher)
    assert not draws.mask.masked[torch.arange(3), torch.arange(3) + 5].any()
    assert (draws.mask.masked.sum(dim=1) == 12).all()
    assert CONFIG.masker == AttentionMasker(rule="sample_visible")


def test_a_random_mask_asks_for_no_attention():
    method, _ = built(replace(CONFIG, masker=RandomMasker()))
    assert method.teacher.asked == [None]


def test_a_count_that_varies_is_refused():
    with pytest.raises(ValueError, match="number varies"):
        replace(CONFIG, masker=BlockMasker(ratio=0.4, exact=False, min_area=2))


def test_class_tokens_are_needed():
    for config, prefix in ((replace(CONFIG, encoder=replace(ENCODER, class_token=False)), 1), (CONFIG, 0)):
        with pytest.raises(ValueError, match="must have a class token"):
            config.build(teacher=Given(num_prefix=prefix))
