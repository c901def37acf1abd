import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pantomim.nn.mixing import Mixing, cutmix_lam, draw_mixing, mix_images, mix_targets, swap_neighbours


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_same_seed_draws_the_same_mixing():
    assert draw_mixing(rng((1, 7)), (32, 48)) == draw_mixing(rng((1, 7)), (32, 48))
    assert draw_mixing(rng((1, 7)), (32, 48)) != draw_mixing(rng((1, 8)), (32, 48))


def test_half_of_the_batches_are_cutmix_and_shares_are_balanced():
    generator = rng()
    drawn = [draw_mixing(generator, (32, 48)) for _ in range(4000)]
    assert sum(mixing.box is not None for mixing in drawn) == pytest.approx(2000, abs=160)  # five stds
    blended = np.array([mixing.lam for mixing in drawn if mixing.box is None])
    assert blended.mean() == pytest.approx(0.5, abs=0.035)
    assert blended.std() == pytest.approx(np.sqrt(1 / (4 * 2.6)), abs=0.02)  # beta(0.8, 0.8)


def test_boxes_stay_inside_and_lambda_is_their_true_share():
    generator = rng(3)
    for _ in range(500):
        mixing = draw_mixing(generator, (8, 20), mixup_alpha=0.0)
        top, bottom, left, right = mixing.box
        assert 0 <= top <= bottom <= 8
        assert 0 <= left <= right <= 20
        assert mixing.lam == 1 - (bottom - top) * (right - left) / 160


def test_an_alpha_of_zero_leaves_that_kind_out():
    generator = rng(1)
    assert all(draw_mixing(generator, (8, 8), cutmix_alpha=0.0).box is None for _ in range(50))
    with pytest.raises(ValueError, match=r"one positive; got 0\.0 and 0\.0"):
        draw_mixing(generator, (8, 8), mixup_alpha=0.0, cutmix_alpha=0.0)


def test_mixup_blends_with_the_reversed_batch():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    mixed = mix_images(images, Mixing(0.75))
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([0.5, 1.0, 1.5]))


def test_cutmix_pastes_the_box_and_leaves_its_input_alone():
    images = torch.randn(4, 3, 6, 8)
    before, box = images.clone(), (1, 4, 2, 7)
    mixed = mix_images(images, Mixing(cutmix_lam(box, (6, 8)), box))
    assert torch.equal(images, before)
    assert torch.equal(mixed[0, :, 1:4, 2:7], images[3, :, 1:4, 2:7])
    changed = (mixed != images).all(dim=1).float().mean(dim=(1, 2))
    torch.testing.assert_close(changed, torch.full((4,), 1 - cutmix_lam(box, (6, 8))))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_equal_timms(smoothing):
    from timm.data.mixup import mixup_target

    labels = torch.tensor([2, 0, 4, 4])
    ours = mix_targets(labels, 5, 0.3, smoothing)
    torch.testing.assert_close(ours, mixup_target(labels, 5, 0.3, smoothing))
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(4))


def test_unmixed_targets_give_the_label_smoothing_loss():
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    soft = F.cross_entropy(logits, mix_targets(labels, 5, 1.0, 0.1))
    torch.testing.assert_close(soft, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_neighbours_are_partners_however_the_batch_is_shared():
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8)
    assert swap_neighbours(labels).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    whole = mix_images(images, Mixing(0.7), swap_neighbours(images))
    parts = [mix_images(part, Mixing(0.7), swap_neighbours(part)) for part in images.split(2)]
    assert torch.equal(torch.cat(parts), whole)
    torch.testing.assert_close(whole[1], 0.7 * images[1] + 0.3 * images[0])
    targets = mix_targets(labels, 8, 0.7, partners=swap_neighbours(labels))
    torch.testing.assert_close(targets[3, [3, 2]], torch.tensor([0.7, 0.3]))
    with pytest.raises(ValueError, match=r"even number of rows, .* got 3"):
        swap_neighbours(images[:3])
